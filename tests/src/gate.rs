//! A door on loopback before a server: it opens when something is so, or shuts after so much was said.

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The port to come in by.
pub struct Gate {
    /// On loopback.
    pub port: u16,
    said: Arc<AtomicU64>,
    shut: Receiver<()>,
}

impl Gate {
    /// Nobody listens until `opens` is true. It is asked again and again.
    pub fn opening(behind: u16, opens: impl Fn() -> bool + Send + 'static) -> Self {
        let (door, port) = closed_door();
        let (said, shut) = (Arc::new(AtomicU64::new(0)), channel());
        let counted = said.clone();
        std::thread::spawn(move || {
            crate::until("the gate opens", Duration::from_mins(10), opens);
            net::listen(&door, BACKLOG).unwrap();
            serve(&door.into(), behind, &counted, u64::MAX, &shut.0);
        });
        Self {
            port,
            said,
            shut: shut.1,
        }
    }

    /// Forwards the first `pieces` of what clients say, and nothing after them.
    pub fn shutting(behind: u16, pieces: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (said, shut) = (Arc::new(AtomicU64::new(0)), channel());
        let counted = said.clone();
        std::thread::spawn(move || serve(&listener, behind, &counted, pieces, &shut.0));
        Self {
            port,
            said,
            shut: shut.1,
        }
    }

    /// Pieces that clients have said so far.
    pub fn said(&self) -> u64 {
        self.said.load(Ordering::SeqCst)
    }

    /// Whether it has shut by now.
    pub fn is_shut(&self) -> bool {
        self.shut.try_recv().is_ok()
    }
}

/// Clients that may wait to be let in.
const BACKLOG: i32 = 128;

/// A port that is ours from now on, and refuses everybody as long as nobody listens.
fn closed_door() -> (OwnedFd, u16) {
    let flags = SocketFlags::CLOEXEC;
    let door = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    net::bind(&door, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bound = SocketAddr::try_from(net::getsockname(&door).unwrap()).unwrap();
    (door, bound.port())
}

fn serve(
    listener: &TcpListener,
    behind: u16,
    said: &Arc<AtomicU64>,
    pieces: u64,
    shut: &std::sync::mpsc::Sender<()>,
) {
    for client in listener.incoming().flatten() {
        let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], behind))) else {
            continue;
        };
        let (said, shut) = (said.clone(), shut.clone());
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                if said.fetch_add(1, Ordering::SeqCst) >= pieces {
                    // Nobody may listen any more.
                    let _ = shut.send(());
                    // The client waits for an answer until it is killed.
                    while let Ok(1..) = from.read(&mut buffer) {}
                    break;
                }
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        let (mut from, mut to) = (server, client);
        std::thread::spawn(move || {
            // One side may be gone.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}
