//! A conversation with the process of a protocol plugin: handshake, messages both ways, its end, and what breaks the protocol.

use super::frame::{Frame, FrameReader, FrameWriter};
use super::manifest::{Manifest, Protocol};
use super::message::{Done, Hello, Log, Message, Open, PROTOCOLS, Progress, Sums};
use super::process::{Process, RUNG};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, plugin, unsupported};
use crate::event::Event;
use bytes::Bytes;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{ChildStdin, ChildStdout};

/// How long the first message may take: less than a check may, so that it is this which is told.
const HELLO: Duration = Duration::from_secs(9);
/// A message that nobody knows.
const GREASE: &[u8] = br#"{"type":"grease","of":{"a":["later","time"]}}"#;
/// The one argument behind those of the manifest: without it the program was started by a person.
pub const ARGUMENT: &str = "bk-plugin";

/// A process that answered and was told what to do.
pub struct Session {
    cx: Context,
    name: String,
    process: Process,
    frames: FrameReader<ChildStdout>,
    input: Option<FrameWriter<ChildStdin>>,
    patience: Duration,
    features: Vec<String>,
    over: bool,
    grease: bool,
    heard_last: Instant,
}

/// What comes in: a message that is not for the log, or bytes.
#[derive(Debug)]
pub enum Came {
    /// A message.
    Message(Message),
    /// Bytes of the entry that is open.
    Data(Bytes),
}

impl Session {
    /// Starts the program, waits for its hello, and says what to do. `open.protocol` is filled in here.
    pub async fn open(
        cx: &Context,
        manifest: &Manifest,
        spec: &Protocol,
        (open, grease): (Open, bool),
    ) -> Result<Self> {
        let mut session = Self::start(cx, manifest, spec)?;
        session.grease = grease;
        let greeted = session.greet(manifest, open).await;
        match greeted {
            Ok(()) => Ok(session),
            Err(error) => {
                // It was told nothing yet, so there is nothing that it would have to end tidily.
                session.kill();
                Err(session.fail(error).await)
            }
        }
    }

    fn start(cx: &Context, manifest: &Manifest, spec: &Protocol) -> Result<Self> {
        let mut argv = spec.run.clone();
        if argv[0].contains('/') {
            let program: PathBuf = manifest.folder().join(&argv[0]);
            // The child works elsewhere: what it is called by must not depend on that.
            argv[0] = std::path::absolute(&program)
                .unwrap_or(program)
                .to_string_lossy()
                .into_owned();
        }
        argv.push(ARGUMENT.to_owned());
        let folder =
            std::path::absolute(manifest.folder()).unwrap_or_else(|_| manifest.folder().to_owned());
        let variables: Vec<(String, String)> = spec
            .env
            .iter()
            .filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)))
            .chain([
                (
                    "BK_PLUGIN_FOLDER".to_owned(),
                    folder.to_string_lossy().into_owned(),
                ),
                // Python would write into the folder, which would then no longer be what was accepted.
                ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
            ])
            .collect();
        let mut process = Process::start(cx, &argv, &variables, |_| Ok(()))?;
        let frames = process.stdout.take().map(FrameReader::new);
        let input = process.stdin.take().map(FrameWriter::new);
        Ok(Self {
            cx: cx.clone(),
            name: manifest.name.clone(),
            process,
            frames: frames.ok_or_else(|| plugin("it has no output"))?,
            input,
            patience: spec.patience,
            features: Vec::new(),
            over: false,
            grease: false,
            heard_last: Instant::now(),
        })
    }

    async fn greet(&mut self, manifest: &Manifest, mut open: Open) -> Result<()> {
        let first = self.receive(Some(HELLO)).await?;
        let hello = match first {
            Some(Came::Message(Message::Hello(hello))) => hello,
            Some(Came::Message(Message::Error(said))) => return Err(said.into()),
            Some(_) => return Err(plugin("its first message is no hello")),
            None => return Err(self.ended_early().await),
        };
        same(&hello, manifest)?;
        open.protocol = PROTOCOLS
            .into_iter()
            .filter(|version| hello.protocol.contains(version))
            .max()
            .ok_or_else(|| {
                unsupported(format!(
                    "it speaks version {} of the plugin protocol, this program {}",
                    words(&hello.protocol),
                    words(&PROTOCOLS)
                ))
                .hint(format!(
                    "bk plugins upgrade {}, or use another bk",
                    manifest.name
                ))
            })?;
        self.features = hello.features;
        self.send(&Message::Open(Box::new(open))).await
    }

    /// Sums as this plugin says and takes them.
    pub fn sums(&self) -> Sums {
        Sums::of(&self.features)
    }

    /// Closes its input, without a word.
    pub fn cut(&mut self) {
        self.input = None;
    }

    /// Kills it, and all that it started, at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends a message, as `write` sends bytes.
    pub async fn send(&mut self, message: &Message) -> Result<()> {
        self.write(message.frame()?).await
    }

    /// Sends bytes. What it says meanwhile is read, so that neither side waits for the other for ever; only words for the log belong there.
    pub async fn write(&mut self, frame: Frame) -> Result<()> {
        let refuse = |message| match message {
            Message::Error(said) => Err(said.into()),
            other => Err(out_of_place(&other)),
        };
        self.exchange(frame, refuse).await
    }

    /// Sends a frame while what comes in is handed to `meanwhile`.
    pub async fn exchange(
        &mut self,
        frame: Frame,
        mut meanwhile: impl FnMut(Message) -> Result<()>,
    ) -> Result<()> {
        let patience = self.patience;
        let cancel = self.cx.cancel.clone();
        let Some(mut input) = self.input.take() else {
            return Err(plugin("its input is closed"));
        };
        self.heard_last = Instant::now();
        let sent = {
            let is_greased = self.grease && matches!(frame, Frame::Message(_));
            let mut sending = std::pin::pin!(async {
                if is_greased {
                    input
                        .write(&Frame::Message(Bytes::from_static(GREASE)))
                        .await?;
                }
                input.write(&frame).await
            });
            loop {
                let left = patience.saturating_sub(self.heard_last.elapsed());
                let came = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Err(Error::cancelled()),
                    sent = &mut sending => break sent,
                    came = self.receive(None) => came?,
                    () = tokio::time::sleep(left) => {
                        if self.heard_last.elapsed() < patience {
                            continue;
                        }
                        return Err(plugin(format!("it took nothing for {} s", patience.as_secs())));
                    }
                };
                match came {
                    Some(Came::Message(message)) => meanwhile(message)?,
                    Some(Came::Data(_)) => {
                        return Err(plugin("it sent bytes that nobody asked for"));
                    }
                    None => return Err(self.ended_early().await),
                }
            }
        };
        self.input = Some(input);
        match sent {
            Ok(()) => Ok(()),
            // It reads no more: what it said before tells why.
            Err(_) => Err(self.its_reason().await),
        }
    }

    /// The next message that is not for the log, or bytes. An error of the plugin's own comes as that error.
    pub async fn next(&mut self) -> Result<Came> {
        match self.receive(Some(self.patience)).await? {
            Some(Came::Message(Message::Error(said))) => Err(said.into()),
            Some(came) => Ok(came),
            None => Err(self.ended_early().await),
        }
    }

    /// The next message, where bytes would be a mistake.
    pub async fn message(&mut self) -> Result<Message> {
        match self.next().await? {
            Came::Message(message) => Ok(message),
            Came::Data(_) => Err(plugin("it sent bytes where a message belongs")),
        }
    }

    /// Waits for `done`, passing over nothing.
    pub async fn done(&mut self) -> Result<Done> {
        match self.message().await? {
            Message::Done(done) => {
                self.finish().await?;
                Ok(*done)
            }
            other => Err(out_of_place(&other)),
        }
    }

    /// After `done`: its output ends, and it ends with 0. Success needs all three.
    pub async fn finish(&mut self) -> Result<()> {
        self.input = None;
        let cx = self.cx.clone();
        let late = || {
            plugin(format!(
                "it said that it was done, and did not end within {} s",
                RUNG.as_secs()
            ))
        };
        if cx.within(RUNG, late, self.receive(None)).await?.is_some() {
            return Err(plugin("it went on after it had said that it was done"));
        }
        let status = cx.within(RUNG, late, self.process.ended()).await?;
        self.over = true;
        if status.success() {
            return Ok(());
        }
        let error = plugin(format!("it said that it was done, and ended with {status}"));
        Err(self.process.with_last_words(error))
    }

    /// Ends it by the ladder, unless it has ended, and gives the error its place: the plugin's name and last words.
    pub async fn fail(mut self, error: Error) -> Error {
        let said_by_itself = !matches!(error.kind, ErrorKind::Plugin);
        self.end().await;
        let error = if said_by_itself {
            error
        } else {
            self.process.with_last_words(error)
        };
        error.within(format!("plugin `{}`", self.name))
    }

    /// Asks it to stop, then makes it. How it ended, where it had not ended before.
    pub async fn end(&mut self) -> Option<ExitStatus> {
        if self.over {
            return None;
        }
        self.over = true;
        if let (Some(mut input), Ok(frame)) = (self.input.take(), Message::Cancel.frame()) {
            // Where it reads no more, closing its input says the same.
            let _ = tokio::time::timeout(Duration::from_millis(500), input.write(&frame)).await;
        }
        // Its output is drained: one that only writes would else never see the end.
        tokio::select! {
            status = self.process.end() => status,
            () = drain(&mut self.frames) => self.process.end().await,
        }
    }

    /// The next that is not for the log. Each frame, those too, may take as long as `patience` says. Safe to drop while waiting.
    async fn receive(&mut self, patience: Option<Duration>) -> Result<Option<Came>> {
        loop {
            let frame = match patience {
                None => self.frames.next().await?,
                Some(patience) => {
                    let late = || {
                        plugin(format!("it said nothing for {} s", patience.as_secs()))
                            .hint("a plugin that works long in silence sends `progress`, or has a longer `patience` in its manifest")
                    };
                    self.cx.within(patience, late, self.frames.next()).await?
                }
            };
            self.heard_last = Instant::now();
            let message = match frame {
                None => return Ok(None),
                Some(Frame::Data(bytes)) => return Ok(Some(Came::Data(bytes))),
                Some(Frame::Message(body)) => Message::parse(&body)?,
            };
            match message {
                Message::Log(log) => self.log(&log),
                Message::Progress(Progress { total }) => {
                    if let Some(total) = total {
                        self.cx.tell(&Event::Expect(total));
                    }
                }
                // Of a later time, or grease.
                Message::Unknown => {}
                other => return Ok(Some(Came::Message(other))),
            }
        }
    }

    fn log(&self, log: &Log) {
        let instance = &self.cx.instance;
        match log.level.as_str() {
            "error" | "warn" => {
                tracing::warn!(%instance, "{}", log.message);
                self.cx.tell(&Event::Warning(&log.message));
            }
            "debug" => tracing::debug!(%instance, "{}", log.message),
            _ => tracing::info!(%instance, "{}", log.message),
        }
    }

    /// Why it reads no more: its own words, or its end.
    async fn its_reason(&mut self) -> Error {
        let ended = async {
            loop {
                match self.receive(None).await {
                    Ok(Some(Came::Message(Message::Error(said)))) => return Some(said.into()),
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        };
        match tokio::time::timeout(RUNG, ended).await {
            Ok(Some(error)) => error,
            Ok(None) => self.ended_early().await,
            Err(_) => plugin("it reads no more"),
        }
    }

    async fn ended_early(&mut self) -> Error {
        let status = tokio::time::timeout(RUNG, self.process.ended()).await;
        self.over = matches!(status, Ok(Ok(_)));
        match status {
            Ok(Ok(status)) => plugin(format!("it ended before it was done, with {status}")),
            Ok(Err(error)) => error,
            Err(_) => plugin("its output ended before it was done"),
        }
    }
}

async fn drain(frames: &mut FrameReader<ChildStdout>) {
    // Whatever it still writes is of no more interest; an error ends it as well as the end does.
    while let Ok(Some(_)) = frames.next().await {}
}

/// A message that does not belong here.
pub fn out_of_place(message: &Message) -> Error {
    let name = serde_json::to_value(message)
        .ok()
        .and_then(|value| value.get("type")?.as_str().map(str::to_owned))
        .unwrap_or_default();
    plugin(format!("its message `{name}` does not belong here"))
}

fn same(hello: &Hello, manifest: &Manifest) -> Result<()> {
    if hello.name != manifest.name || hello.version != manifest.version {
        return Err(plugin(format!(
            "it says that it is `{}` {}, its manifest says `{}` {}",
            hello.name, hello.version, manifest.name, manifest.version
        )));
    }
    let role = manifest.role.word();
    if !hello.roles.is_empty() && !hello.roles.iter().any(|said| said == role) {
        return Err(plugin(format!(
            "it says that it is a {}, its manifest says a {role}",
            hello.roles.join(" and a ")
        )));
    }
    Ok(())
}

fn words(versions: &[u32]) -> String {
    let words: Vec<_> = versions.iter().map(u32::to_string).collect();
    words.join(", ")
}
