//! An object store that keeps nothing but sums: what a client sends is hashed part by part, so that uploads larger than any disk here can be
//! proven. It speaks just what an upload needs.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use md5::Digest as _;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// What is known of a part: its bytes and its CRC-64/NVME.
type Parts = BTreeMap<u32, (u64, u64)>;

#[derive(Default)]
struct Store {
    uploads: BTreeMap<String, (String, Parts)>,
    /// Metadata, bytes and sum by key.
    objects: BTreeMap<String, (String, u64, u64)>,
    small: BTreeMap<String, Bytes>,
}

/// Serves for ever. Prints each object that is completed: key, bytes, CRC-64/NVME.
pub async fn serve(listener: TcpListener) {
    let store = Arc::new(Mutex::new(Store::default()));
    while let Ok((stream, _)) = listener.accept().await {
        let store = store.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(store.clone(), request));
            // A client that hangs up ends its connection only.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    store: Arc<Mutex<Store>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().clone();
    let key = request.uri().path().to_owned();
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let id = request.headers().get("x-amz-meta-bk-id");
    let id = id.map_or(String::new(), |v| v.to_str().unwrap_or("").to_owned());
    let asked_sum = request.headers().get("x-amz-checksum-crc64nvme").cloned();
    let part = query.get("partNumber").and_then(|n| n.parse().ok());
    let (bytes, crc, md5, small) = hash(request.into_body(), part.is_none()).await;
    let sum = encoded(crc);
    if asked_sum.is_some_and(|asked| asked != sum) && (part.is_some() || method == Method::PUT) {
        return Ok(said(400, "<Error><Code>BadDigest</Code></Error>"));
    }
    let mut store = store.lock().unwrap();
    Ok(match (method, part) {
        (Method::GET, _) if query.contains_key("versioning") => {
            said(200, "<VersioningConfiguration/>")
        }
        (Method::GET, _) if query.contains_key("list-type") => said(
            200,
            "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        ),
        (Method::GET, _) if query.contains_key("uploads") => {
            said(200, "<ListMultipartUploadsResult/>")
        }
        (Method::POST, _) if query.contains_key("uploads") => {
            let upload = format!("u{}", store.uploads.len());
            store.uploads.insert(upload.clone(), (id, Parts::new()));
            said(
                200,
                &format!(
                    "<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                ),
            )
        }
        (Method::PUT, Some(part)) => {
            let upload = store.uploads.get_mut(&query["uploadId"]).unwrap();
            upload.1.insert(part, (bytes, crc));
            let mut response = said(200, "");
            headers(&mut response, &md5, &sum);
            response
        }
        (Method::POST, _) => {
            let (id, parts) = store.uploads.remove(&query["uploadId"]).unwrap();
            let whole = parts.values().fold((0, 0), |(bytes, crc), (more, sum)| {
                let algorithm = crc_fast::CrcAlgorithm::Crc64Nvme;
                (
                    bytes + more,
                    crc_fast::checksum_combine(algorithm, crc, *sum, *more),
                )
            });
            println!("{key} {} {:016x}", whole.0, whole.1);
            store.objects.insert(key, (id, whole.0, whole.1));
            said(200, "<CompleteMultipartUploadResult/>")
        }
        (Method::PUT, None) => {
            store.small.insert(key, small);
            let mut response = said(200, "");
            headers(&mut response, &md5, &sum);
            response
        }
        (Method::HEAD | Method::GET, _) => match (store.objects.get(&key), store.small.get(&key)) {
            (Some((id, bytes, crc)), _) => {
                let mut response = said(200, "");
                headers(&mut response, "d15ca4d", &encoded(*crc));
                let map = response.headers_mut();
                map.insert("x-amz-meta-bk-id", id.parse().unwrap());
                map.insert("content-length", bytes.to_string().parse().unwrap());
                map.insert(
                    "last-modified",
                    "Sat, 22 Aug 2026 03:15:00 GMT".parse().unwrap(),
                );
                response
            }
            (_, Some(body)) => {
                let mut response = said(200, "");
                headers(&mut response, "5ma11", &sum);
                *response.body_mut() = Full::new(body.clone());
                response
            }
            _ => said(404, "<Error><Code>NoSuchKey</Code></Error>"),
        },
        _ => said(204, ""),
    })
}

async fn hash(mut body: Incoming, keep: bool) -> (u64, u64, String, Bytes) {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    let mut md5 = keep.then(md5::Md5::new);
    let (mut bytes, mut small) = (0, Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else {
            continue;
        };
        bytes += data.len() as u64;
        crc.update(data);
        if let Some(md5) = &mut md5 {
            md5.update(data);
            small.extend_from_slice(data);
        }
    }
    let crc = crc.finalize();
    let etag = md5.map_or_else(
        || format!("{crc:032x}"),
        |md5| md5.finalize().iter().map(|b| format!("{b:02x}")).collect(),
    );
    (bytes, crc, etag, small.into())
}

fn encoded(crc: u64) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in crc.to_be_bytes().chunks(3) {
        let n = chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            text.push(if at <= chunk.len() {
                DIGITS[(n >> (18 - 6 * at) & 63) as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

fn headers(response: &mut Response<Full<Bytes>>, etag: &str, sum: &str) {
    let map = response.headers_mut();
    map.insert("etag", format!("\"{etag}\"").parse().unwrap());
    map.insert("x-amz-checksum-crc64nvme", sum.parse().unwrap());
}

fn said(status: u16, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}
