//! What every process that speaks the plugin protocol must do, beyond what the suites of sources and sinks ask.

use crate::engine::Site;
use crate::{Outcome, hold};
use bk_core::archive::writer::hex;
use bk_core::context::Context;
use bk_core::plugin::frame::Frame;
use bk_core::plugin::manifest::{How, Manifest, Role};
use bk_core::plugin::message::{ArchiveAsk, Entry, Message, NoteAsk, Op, Publish, RestoreAsk};
use bk_core::plugin::protocol_sink::ProtocolSink;
use bk_core::plugin::protocol_source::{Remote, Trial};
use bk_core::plugin::session::{Came, Session};
use bk_core::sink::{Seal, Sink};
use bk_core::source::{Existing, Facts};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::time::Duration;

/// A plugin and an instance of it that is filled, where it is a source, and empty, where it is a sink.
pub struct Speaker {
    /// What it says of itself.
    pub manifest: std::sync::Arc<Manifest>,
    /// How it is asked.
    pub remote: Remote,
    /// Of a source: an entry of its own backup.
    entry: Option<(Box<Entry>, Vec<u8>)>,
}

impl Speaker {
    /// Asks a source for an entry, before anything is done to it.
    pub async fn new(manifest: std::sync::Arc<Manifest>, remote: Remote) -> Result<Self, String> {
        let entry = match manifest.role {
            Role::Source => Some(first_entry(&remote).await?),
            Role::Sink => None,
        };
        Ok(Self {
            manifest,
            remote,
            entry,
        })
    }

    fn entry(&self) -> Result<&(Box<Entry>, Vec<u8>), String> {
        self.entry.as_ref().ok_or_else(|| "it has no entry".into())
    }
}

/// A check of a plugin.
pub type Check = for<'a> fn(&'a Speaker) -> BoxFuture<'a, Outcome>;

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        /// All checks, by name.
        pub const CHECKS: &[(&str, Check)] = &[$((stringify!($name), |speaker| Box::pin($name(speaker)))),*];
    };
}

checks![
    started_by_a_person_it_says_what_it_is,
    messages_of_a_later_time_are_passed_over,
    cancelled_it_ends_within_5_s,
    what_is_cut_off_is_no_success,
    a_body_with_another_sum_is_no_success,
];

/// What a plugin is given to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

fn context() -> Context {
    Site::default().context()
}

fn said(error: bk_core::Error) -> String {
    error.to_string()
}

async fn started_by_a_person_it_says_what_it_is(speaker: &Speaker) -> Outcome {
    let How::Protocol(spec) = &speaker.manifest.how else {
        return Ok(());
    };
    let mut program = spec.run.clone();
    if program[0].contains('/') {
        let path = speaker.manifest.folder().join(&program[0]);
        program[0] = path.to_string_lossy().into_owned();
    }
    let run = tokio::process::Command::new(&program[0])
        .args(&program[1..])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(PATIENCE, run)
        .await
        .map_err(|_| "without the argument `bk-plugin` it does not end".to_owned())?
        .map_err(|e| e.to_string())?;
    hold(
        ended.status.code() == Some(2) && ended.stdout.is_empty() && !ended.stderr.is_empty(),
        || {
            format!(
                "without the argument `bk-plugin` it ends with {} and writes {} bytes to standard output, {} to standard error; 2, 0 and some are right",
                ended.status,
                ended.stdout.len(),
                ended.stderr.len()
            )
        },
    )
}

async fn messages_of_a_later_time_are_passed_over(speaker: &Speaker) -> Outcome {
    let greased = speaker.remote.clone().on_trial(Trial {
        grease: true,
        cut_restore_after: None,
    });
    match speaker.manifest.role {
        Role::Source => {
            let entry = speaker.entry()?;
            let mut session = open_restore(&greased).await?;
            let sent = send(&mut session, entry, Spoilt::No).await;
            let done = match sent {
                Ok(()) => outcome(&mut session).await,
                Err(error) => Ended::NotWell(error),
            };
            session.end().await;
            hold(done == Ended::Well, || {
                format!("a restore with messages that it does not know: {done:?}")
            })
        }
        Role::Sink => {
            let mut session = open_put(&greased).await?;
            let body = Bytes::from_static(b"not long");
            session
                .write(Frame::Data(body.clone()))
                .await
                .map_err(said)?;
            let publish = publish_of(&body);
            session.send(&publish).await.map_err(said)?;
            let done = outcome(&mut session).await;
            session.end().await;
            hold(done == Ended::Well, || {
                format!("a put with messages that it does not know: {done:?}")
            })?;
            let seen = ProtocolSink(greased)
                .list(&context(), &Default::default())
                .await;
            let seen = seen.map_err(said)?;
            hold(seen.len() == 1, || {
                format!("{} archives are there", seen.len())
            })
        }
    }
}

async fn cancelled_it_ends_within_5_s(speaker: &Speaker) -> Outcome {
    let mut sessions = Vec::new();
    match speaker.manifest.role {
        Role::Source => {
            let cx = context();
            let backup = speaker.remote.open(&cx, Op::Backup, |_| ());
            let mut session = backup.await.map_err(said)?;
            session.message().await.map_err(said)?;
            // It may be done before it hears of it.
            sessions.push((session, true));
            let mut session = open_restore(&speaker.remote).await?;
            send(&mut session, speaker.entry()?, Spoilt::Cut).await?;
            sessions.push((session, false));
        }
        Role::Sink => {
            let mut session = open_put(&speaker.remote).await?;
            let part = Frame::Data(Bytes::from_static(&[7; 1000]));
            session.write(part).await.map_err(said)?;
            sessions.push((session, false));
        }
    }
    for (mut session, may_be_done) in sessions {
        let began = std::time::Instant::now();
        let status = session.end().await;
        hold(began.elapsed() < PATIENCE, || {
            "told to stop, and its input closed, it had to be ended by a signal".into()
        })?;
        hold(
            may_be_done || status.is_none_or(|status| !status.success()),
            || "told to stop in the middle of a body, it ended with 0".into(),
        )?;
    }
    Ok(())
}

async fn what_is_cut_off_is_no_success(speaker: &Speaker) -> Outcome {
    match speaker.manifest.role {
        Role::Source => {
            let entry = speaker.entry()?;
            let mut session = open_restore(&speaker.remote).await?;
            send(&mut session, entry, Spoilt::Cut).await?;
            session.cut();
            let done = outcome(&mut session).await;
            session.end().await;
            hold(matches!(done, Ended::NotWell(_)), || {
                format!("its input ended inside an entry: {done:?}")
            })
        }
        Role::Sink => {
            let mut session = open_put(&speaker.remote).await?;
            let part = Frame::Data(Bytes::from_static(&[7; 1000]));
            session.write(part).await.map_err(said)?;
            session.cut();
            let done = outcome(&mut session).await;
            session.end().await;
            hold(matches!(done, Ended::NotWell(_)), || {
                format!("its input ended before `publish`: {done:?}")
            })?;
            let sink = ProtocolSink(speaker.remote.clone());
            let seen = sink.list(&context(), &Default::default()).await;
            let seen = seen.map_err(said)?;
            hold(seen.is_empty(), || {
                format!("`{}` is there, and was never published", seen[0].name)
            })
        }
    }
}

async fn a_body_with_another_sum_is_no_success(speaker: &Speaker) -> Outcome {
    let (mut session, sent) = match speaker.manifest.role {
        Role::Source => {
            let mut session = open_restore(&speaker.remote).await?;
            let sent = send(&mut session, speaker.entry()?, Spoilt::Sum).await;
            (session, sent)
        }
        Role::Sink => {
            let note = NoteAsk {
                name: "kit".into(),
                was: "any".into(),
                etag: String::new(),
            };
            let cx = context();
            let set = speaker
                .remote
                .open(&cx, Op::NoteSet, |open| open.note = Some(note));
            let mut session = set.await.map_err(said)?;
            let sent = spoilt_text(&mut session).await;
            (session, sent)
        }
    };
    let done = match sent {
        Ok(()) => outcome(&mut session).await,
        Err(error) => Ended::NotWell(error),
    };
    session.end().await;
    hold(matches!(done, Ended::NotWell(_)), || {
        format!("a body came with a sum that is not its own: {done:?}")
    })
}

/// A text whose end has another sum.
async fn spoilt_text(session: &mut Session) -> Result<(), String> {
    let text = Frame::Data(Bytes::from_static(b"text"));
    session.write(text).await.map_err(said)?;
    let mut sums = session.sums();
    sums.update(b"tent");
    let end = Message::End(sums.end(0));
    session.send(&end).await.map_err(said)
}

fn publish_of(body: &Bytes) -> Message {
    use sha2::Digest;
    let sum = sha2::Sha256::digest(body);
    let seal = Seal {
        sha256: hex(&sum),
        bytes: body.len() as u64,
        id: "0".repeat(32),
        site: "main".into(),
        complete: true,
    };
    let names = vec!["backup.1970-01-01.tar.xz".to_owned()];
    Message::Publish(Box::new(Publish::new(names, &seal)))
}

async fn open_put(remote: &Remote) -> Result<Session, String> {
    let archive = ArchiveAsk {
        prefix: "backup".into(),
        start: jiff::Timestamp::UNIX_EPOCH,
        day: "1970-01-01".into(),
        suffix: ".tar.xz".into(),
        id: "0".repeat(32),
    };
    remote
        .open(&context(), Op::Put, |open| open.archive = Some(archive))
        .await
        .map_err(said)
}

async fn open_restore(remote: &Remote) -> Result<Session, String> {
    let ask = RestoreAsk {
        existing: Some(Existing::Merge),
        whole_groups: Vec::new(),
        into_group: Vec::new(),
        into_place: None,
        facts: Facts {
            layout: 1,
            ..Facts::default()
        },
        archive: "kit".into(),
        id: "kit".into(),
        forget_unfinished: false,
    };
    remote
        .open(&context(), Op::Restore, |open| open.restore = Some(ask))
        .await
        .map_err(said)
}

/// The first file that a backup writes, with its body.
async fn first_entry(remote: &Remote) -> Result<(Box<Entry>, Vec<u8>), String> {
    let mut session = remote
        .open(&context(), Op::Backup, |_| ())
        .await
        .map_err(said)?;
    let mut open = None;
    let mut body = Vec::new();
    let found = loop {
        match session.next().await {
            Ok(Came::Message(Message::Entry(entry))) => {
                body.clear();
                open = Some(entry);
            }
            Ok(Came::Data(bytes)) => body.extend_from_slice(&bytes),
            Ok(Came::Message(Message::End(_))) if !body.is_empty() => {
                break open.ok_or_else(|| "an end without an entry".to_owned());
            }
            Ok(Came::Message(Message::Done(_))) => break Err("it has no entry with a body".into()),
            Ok(_) => {}
            Err(error) => break Err(said(error)),
        }
    };
    session.end().await;
    found.map(|entry| (entry, body))
}

#[derive(Clone, Copy, PartialEq)]
enum Spoilt {
    No,
    /// Half a body, and nothing after it.
    Cut,
    /// Another sum.
    Sum,
}

async fn send(
    session: &mut Session,
    (entry, body): &(Box<Entry>, Vec<u8>),
    spoilt: Spoilt,
) -> Result<(), String> {
    let message = Message::Entry(entry.clone());
    session.send(&message).await.map_err(said)?;
    let mut sums = session.sums();
    let half = body.len().div_ceil(2);
    for part in [&body[..half], &body[half..]] {
        for chunk in part.chunks(1 << 20) {
            sums.update(chunk);
            let frame = Frame::Data(Bytes::copy_from_slice(chunk));
            session.write(frame).await.map_err(said)?;
        }
        if spoilt == Spoilt::Cut {
            return Ok(());
        }
    }
    if spoilt == Spoilt::Sum {
        // One byte that was never sent.
        let len = sums.bytes();
        sums.update(b"x");
        let mut end = sums.end(0);
        end.len = len;
        session.send(&Message::End(end)).await.map_err(said)?;
    } else {
        session
            .send(&Message::End(sums.end(0)))
            .await
            .map_err(said)?;
    }
    session.send(&Message::Finish).await.map_err(said)
}

/// How a conversation ended.
#[derive(Debug, PartialEq)]
enum Ended {
    /// `done`, the end of its output, and 0.
    Well,
    /// Otherwise, and how.
    NotWell(String),
    /// Not at all.
    Hangs,
}

async fn outcome(session: &mut Session) -> Ended {
    let ended = async {
        loop {
            match session.message().await? {
                Message::Done(_) => {
                    session.finish().await?;
                    return Ok::<_, bk_core::Error>(Ended::Well);
                }
                Message::Failed(failed) => return Ok(Ended::NotWell(failed.message)),
                _ => {}
            }
        }
    };
    match tokio::time::timeout(PATIENCE * 2, ended).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) if error.what.starts_with("it said nothing for") => Ended::Hangs,
        Ok(Err(error)) => Ended::NotWell(said(error)),
        Err(_) => Ended::Hangs,
    }
}
