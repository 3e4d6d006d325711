//! Commands seen as a source: standard output of one is the backup, standard input of another the restore. No shell looks at them, and no
//! secret is ever an argument.

use super::manifest::{Commands, Manifest, patience, placeholder};
use super::process::{Process, RUNG};
use super::root::Proof;
use super::settings::Given;
use crate::archive::piped::Pipe;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug, conflict, plugin, settings, unsupported};
use crate::name::MemberPath;
use crate::secret::Secret;
use crate::source::{
    Body, Counted, Existing, Facts, Health, Input, Meta, Output, PointInTime, RestoreOptions,
    Snapshot, SnapshotOptions, Source, Stage, Tally, UnitCount,
};
use async_trait::async_trait;
use bytes::BytesMut;
use command_fds::{CommandFdExt, FdMapping};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long `check` may take.
const CHECK: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 1 << 20;
/// The first descriptor behind standard input, output and error.
const FIRST_DESCRIPTOR: i32 = 3;
/// A pipe takes so much before anybody reads: a secret must fit.
const SECRET_MAX_BYTES: usize = 32 << 10;

/// A part of a command, or the value of a variable.
#[derive(Clone, Debug)]
pub enum Part {
    /// As it stands.
    Text(String),
    /// In a command: a path from which the secret can be read once. In a variable: the secret.
    Secret(Secret),
}

/// What is run, with which variables, and where.
#[derive(Clone)]
pub struct CommandSource {
    /// Name of the one member.
    pub entry: MemberPath,
    /// Writes the backup.
    pub backup: Vec<Part>,
    /// Takes it back; without it `bk` cannot restore, only extract.
    pub restore: Option<Vec<Part>>,
    /// Ends with 0 where both could start now.
    pub check: Option<Vec<Part>>,
    /// Variables beside PATH, HOME, LANG and TZ.
    pub variables: Vec<(String, Part)>,
    /// Where it is run; nothing: an empty folder.
    pub folder: Option<PathBuf>,
    /// A command that says nothing for so long is ended.
    pub patience: Duration,
    /// What its restore does with what is there.
    pub existing: Existing,
    /// For people: which plugin this is.
    pub about: String,
    /// Asked before each command; nothing: it is this program's own.
    pub proof: Option<Proof>,
}

impl CommandSource {
    /// The commands of a manifest, with the settings of an instance in their places.
    pub fn new(
        manifest: &Manifest,
        commands: &Commands,
        given: &BTreeMap<String, Given>,
    ) -> Result<Self> {
        let fill = |argv: &Vec<String>| fill(argv, given);
        let variables = commands.env.iter().filter_map(|(name, value)| {
            let part = match placeholder(value) {
                None => Ok(Part::Text(value.clone())),
                // One that is not said is not set.
                Some(key) => match given.get(key)? {
                    Given::Secret(secret) => Ok(Part::Secret(secret.clone())),
                    other => other.arguments().map(|texts| Part::Text(texts.join(","))),
                },
            };
            Some(part.map(|part| (name.clone(), part)))
        });
        Ok(Self {
            entry: MemberPath::new(commands.entry.as_bytes())?,
            backup: fill(&commands.backup)?,
            restore: commands.restore.as_ref().map(fill).transpose()?,
            check: commands.check.as_ref().map(fill).transpose()?,
            variables: variables.collect::<Result<_>>()?,
            folder: None,
            patience: patience(commands.patience),
            existing: Existing::Replace,
            about: manifest.about.clone(),
            proof: None,
        })
    }

    /// The same, but only as long as this holds.
    #[must_use]
    pub fn proven(self, proof: Proof) -> Self {
        Self {
            proof: Some(proof),
            ..self
        }
    }

    async fn prove(&self) -> Result<()> {
        match self.proof.clone() {
            Some(proof) => crate::context::blocking(move || proof()).await,
            None => Ok(()),
        }
    }

    async fn start(&self, cx: &Context, argv: &[Part]) -> Result<Process> {
        self.prove().await?;
        let mut secrets = Vec::new();
        let mut words = Vec::new();
        for part in argv {
            match part {
                Part::Text(text) => words.push(text.clone()),
                Part::Secret(secret) => {
                    let descriptor = FIRST_DESCRIPTOR + secrets.len() as i32;
                    words.push(format!("/dev/fd/{descriptor}"));
                    secrets.push(FdMapping {
                        parent_fd: in_a_pipe(&secret.reveal().await?)?,
                        child_fd: descriptor,
                    });
                }
            }
        }
        let mut variables = Vec::new();
        if let Ok(home) = std::env::var("HOME") {
            variables.push(("HOME".to_owned(), home));
        }
        for (name, part) in &self.variables {
            let value = match part {
                Part::Text(text) => text.clone(),
                Part::Secret(secret) => secret.reveal().await?,
            };
            variables.push((name.clone(), value));
        }
        Process::start(cx, &words, &variables, |command| {
            if let Some(folder) = &self.folder {
                command.current_dir(folder);
            }
            if !secrets.is_empty() {
                command
                    .fd_mappings(secrets)
                    .map_err(|e| bug(format!("two secrets have one descriptor: {e}")))?;
            }
            Ok(())
        })
    }
}

/// The read end of a pipe that holds this and no more.
fn in_a_pipe(secret: &str) -> Result<std::os::fd::OwnedFd> {
    if secret.len() > SECRET_MAX_BYTES {
        return Err(settings(format!(
            "a secret of {} bytes is too long to be handed over",
            secret.len()
        )));
    }
    let (read, mut write) =
        std::io::pipe().map_err(|e| plugin(format!("no pipe for a secret: {e}")).because(e))?;
    write
        .write_all(secret.as_bytes())
        .map_err(|e| plugin(format!("a secret could not be handed over: {e}")).because(e))?;
    Ok(read.into())
}

/// Settings in their places: a part that is `{setting}` is the whole argument, and of a list several.
fn fill(argv: &[String], given: &BTreeMap<String, Given>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for part in argv {
        let Some(name) = placeholder(part) else {
            parts.push(Part::Text(part.clone()));
            continue;
        };
        let key = name.strip_suffix(":fd").unwrap_or(name);
        match given.get(key) {
            None => {
                return Err(
                    settings(format!("`{key}` is missing, and a command needs it"))
                        .hint(format!("add `{key} = …`")),
                );
            }
            Some(Given::Secret(secret)) => parts.push(Part::Secret(secret.clone())),
            Some(other) => parts.extend(other.arguments()?.into_iter().map(Part::Text)),
        }
    }
    Ok(parts)
}

fn name_of(argv: &[Part]) -> String {
    match argv.first() {
        Some(Part::Text(program)) => program.clone(),
        _ => "a command".into(),
    }
}

#[async_trait]
impl Source for CommandSource {
    async fn check(&self, cx: &Context) -> Result<Health> {
        let mut health = Health {
            // Nobody can tell who it is; so nothing is refused or held on the word of it.
            identity: String::new(),
            describe: format!("{}: `{}`", self.about, name_of(&self.backup)),
            warnings: Vec::new(),
        };
        if self.restore.is_none() {
            health
                .warnings
                .push("it has no command that restores: bk can extract it, and no more".into());
        }
        let Some(check) = &self.check else {
            self.prove().await?;
            return Ok(health);
        };
        let mut process = self.start(cx, check).await?;
        process.stdin = None;
        let name = name_of(check);
        let late = || {
            plugin(format!(
                "`{name}` was not done within {} s",
                CHECK.as_secs()
            ))
        };
        let drained = drained(&mut process);
        let status = cx.within(CHECK, late, process.ended()).await;
        drained.abort();
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                process.end().await;
                return Err(error);
            }
        };
        if status.success() {
            return Ok(health);
        }
        let error = Error::new(
            ErrorKind::Unreachable,
            format!("its check `{name}` ended with {status}"),
        );
        Err(process.with_last_words(error))
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(CommandSnapshot {
            source: self.clone(),
            at: PointInTime {
                instant: cx.clock.now(),
                consistency: "none".into(),
                position: None,
            },
        }))
    }

    async fn restore(&self, cx: &Context, mut input: Input, how: &RestoreOptions) -> Result<Tally> {
        let mut tally = Tally::default();
        if how.forget_unfinished {
            return Ok(tally);
        }
        let Some(restore) = &self.restore else {
            return Err(unsupported("it has no command that restores")
                .hint("bk extract --into FOLDER, and feed it by hand"));
        };
        if how.existing == Some(Existing::Refuse) {
            return Err(
                conflict("whether something is there already, only its commands know")
                    .hint("leave --existing out"),
            );
        }
        if how.existing.is_some_and(|asked| asked != self.existing) {
            return Err(unsupported(format!(
                "what is there is {}: the command that restores knows nothing else",
                match self.existing {
                    Existing::Replace => "replaced",
                    Existing::Merge => "merged with",
                    Existing::Refuse => "left alone",
                }
            ))
            .hint("leave --existing out"));
        }
        if how.into_place.is_some() || !how.into_group.is_empty() {
            return Err(unsupported("a command restores to where it always does")
                .hint("make a second instance with other settings, and use --as OLD=NEW"));
        }
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                let mut process = self.start(cx, restore).await?;
                let fed = self.feed(cx, &mut process, restore, member.body).await;
                match fed {
                    Ok(bytes) => tally.units.push(UnitCount {
                        group: member.unit.0,
                        name: member.unit.1,
                        stage,
                        members: 1,
                        rows: 0,
                        bytes,
                    }),
                    Err(error) => {
                        process.kill();
                        process.end().await;
                        return Err(process.with_last_words(error));
                    }
                }
            }
        }
        Ok(tally)
    }
}

impl CommandSource {
    /// The body into its standard input; its end, and exit status 0.
    async fn feed(
        &self,
        cx: &Context,
        process: &mut Process,
        argv: &[Part],
        mut body: Body,
    ) -> Result<u64> {
        let name = name_of(argv);
        let late = || {
            plugin(format!(
                "`{name}` took nothing for {} s",
                self.patience.as_secs()
            ))
        };
        let drained = drained(process);
        let mut bytes = 0;
        let mut is_whole = true;
        while let Some(chunk) = body.next().await? {
            // It stays in `process`: where this breaks off, the command is killed before it could take the end of its input for the whole.
            let Some(stdin) = &mut process.stdin else {
                return Err(bug("a command has no standard input"));
            };
            let sent = cx.within(self.patience, late, async {
                Ok(stdin.write_all(&chunk).await)
            });
            if sent.await?.is_err() {
                // It reads no more: its end says why.
                is_whole = false;
                break;
            }
            bytes += chunk.len() as u64;
        }
        process.stdin = None;
        let status = cx.within(self.patience, late, process.ended()).await?;
        drained.abort();
        if !status.success() {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!("`{name}` ended with {status}"),
            ));
        }
        if is_whole {
            Ok(bytes)
        } else {
            Err(plugin(format!(
                "`{name}` ended with 0, and had not read all of its input"
            )))
        }
    }
}

/// Its standard output is read and forgotten, so that it never waits for that.
fn drained(process: &mut Process) -> tokio::task::JoinHandle<()> {
    let stdout = process.stdout.take();
    tokio::spawn(async move {
        let Some(mut stdout) = stdout else { return };
        // An error is an end.
        let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
    })
}

struct CommandSnapshot {
    source: CommandSource,
    at: PointInTime,
}

#[async_trait]
impl Snapshot for CommandSnapshot {
    fn at(&self) -> PointInTime {
        self.at.clone()
    }

    fn large(&self) -> bool {
        true
    }

    /// All is in `Stage::Large`, when its turn has come: a command that waits with a full pipe would hold what it holds for nothing.
    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        if stage != Stage::Large {
            return Ok(());
        }
        out.expect(".", ".").await?;
        let mut process = self.source.start(cx, &self.source.backup).await?;
        process.stdin = None;
        let mut lane = out.lane("command").await?;
        lane.unit(".", ".");
        let path = self.source.entry.clone();
        let read = lane
            .piped(path, Meta::default(), None, |pipe| {
                self.source.read(cx, &mut process, pipe)
            })
            .await;
        if let Err(error) = read {
            process.end().await;
            return Err(process.with_last_words(error));
        }
        lane.close().await?;
        out.end(".", ".", Counted::default()).await
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        Ok(Facts {
            layout: 1,
            ..Facts::default()
        })
    }
}

impl CommandSource {
    /// Its standard output. Whole only with its end and exit status 0.
    async fn read(&self, cx: &Context, process: &mut Process, pipe: Pipe) -> Result<()> {
        let name = name_of(&self.backup);
        let mut stdout = process
            .stdout
            .take()
            .ok_or_else(|| bug("a command has no standard output"))?;
        let late = || {
            plugin(format!(
                "`{name}` said nothing for {} s",
                self.patience.as_secs()
            ))
            .hint("`patience` is how long a command may be silent")
        };
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            let read = cx.within(self.patience, late, async {
                stdout
                    .read_buf(&mut buffer)
                    .await
                    .map_err(|e| plugin(format!("`{name}` cannot be read: {e}")).because(e))
            });
            if read.await? == 0 {
                break;
            }
            if !pipe.send(buffer.split().freeze()).await {
                return Ok(());
            }
        }
        let late = || {
            plugin(format!(
                "`{name}` closed its output, and did not end within {} s",
                RUNG.as_secs()
            ))
        };
        let status = cx.within(RUNG, late, process.ended()).await?;
        if status.success() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unreachable,
            format!("`{name}` ended with {status}"),
        ))
    }
}
