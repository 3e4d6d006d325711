//! Every flag. The same flag means the same everywhere; nothing else knows clap.

use bk_core::settings::Span;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Backs up databases, files and Kubernetes objects into one dated tar.xz per run, and gets them back.
#[derive(Debug, Parser)]
#[command(
    name = "bk",
    version,
    after_help = "Exit codes: 0 done · 1 failed, a retry may help · 2 usage · 3 partial · 4 settings, credentials or grants · 5 nothing found\n6 refused by a guard · 7 corrupt · 8 locked · 9 stale · 130/143 stopped by a signal\n\nbk COMMAND --help says more about each."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Settings file; else `BK_CONFIG`, ./plugins.toml, $`XDG_CONFIG_HOME/bk/plugins.toml`, /etc/bk/plugins.toml
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Lay one setting over the file: --set source.mysql.host=db
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Whose archives: another site than `[archive] site` says
    #[arg(long, global = true, value_name = "NAME")]
    pub site: Option<String>,
    /// One JSON report on stdout, failures included
    #[arg(long, global = true)]
    pub json: bool,
    /// Form of the log on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Say more; twice: all
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say less: errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// No progress, neither bars nor lines
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Exit 0 also on these: partial, stale
    #[arg(long, global = true, value_enum, value_delimiter = ',')]
    pub exit_zero_on: Vec<Forgiven>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Outcomes that a wrapper may take for success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Forgiven {
    /// Exit 3.
    Partial,
    /// Exit 9.
    Stale,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up all sources into one archive on all sinks
    Backup(BackupArgs),
    /// Get data back: all, a part, by date, by version, from a file
    Restore(RestoreArgs),
    /// List archives
    List(ListArgs),
    /// Show what an archive holds
    Show(ShowArgs),
    /// Read an archive to its end and check every byte and count
    Verify(VerifyArgs),
    /// Write an archive's members as plain files into a folder
    Extract(ExtractArgs),
    /// Copy archives from one sink to another
    Copy(CopyArgs),
    /// Fetch the newest archive from where it was made into a folder here, and verify it
    Fetch(FetchArgs),
    /// Delete what `keep` lets go
    Prune(PruneArgs),
    /// Pin an archive: it is never deleted by retention
    Pin(PinArgs),
    /// Take a pin away
    Unpin(PinArgs),
    /// Could a backup and a restore start now?
    Check(CheckArgs),
    /// Show or validate the settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// List plugins, or show a plugin's settings
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// `bk backup`
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Only these sources
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Not these sources
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// A word for people, kept in the archive
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Pin the archive
    #[arg(long)]
    pub pin: bool,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait for another run of the same settings file: 30s, 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait_lock: Option<std::time::Duration>,
}

/// `bk copy`
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The sink that has them
    #[arg(long, value_name = "SINK")]
    pub from: String,
    /// The sink that gets them
    #[arg(long, value_name = "SINK")]
    pub to: String,
    /// A date, a version, an id or a name, as `bk list` prints them; without it the newest whole one
    #[arg(value_name = "ARCHIVE", conflicts_with = "all")]
    pub archive: Option<String>,
    /// All that the other sink lacks
    #[arg(long)]
    pub all: bool,
    /// Print what would be copied and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `bk fetch`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk fetch                                  every sink that has a `fetch` table\n  bk fetch --from node ~/backups            the newest archive of the sink `node`, into ~/backups/YYYY-MM-DD/\n  bk fetch --from node ~/backups --all      all that `keep` would retain (the last 10)\n\nWhat breaks off goes on where it was when the command is repeated. Exit 9: done, but the newest good archive here is too old."
)]
pub struct FetchArgs {
    /// The folder; without it every sink that has a `fetch` table
    pub into: Option<PathBuf>,
    /// The sink that has the archives
    #[arg(long, value_name = "SINK")]
    pub from: Option<String>,
    /// All that `keep` retains and is not here, the newest first
    #[arg(long)]
    pub all: bool,
    /// Exit 9 when the newest good archive here is older: 36h, 2d; without it twice the usual distance of the archives there, or 48h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub max_age: Option<std::time::Duration>,
    /// Print what would be fetched and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait for another run of the same folder: 30s, 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait_lock: Option<std::time::Duration>,
}

/// Which archive.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// That day's newest (2026-08-22), or the newest at or before (`20260822_031500`, 2026-08-22T03:15:00Z)
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// That version, as `bk list` prints it; an archive's id or name fits too
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Only from this sink
    #[arg(long, value_name = "SINK")]
    pub from: Option<String>,
    /// Go on although a sink does not answer
    #[arg(long)]
    pub offline_ok: bool,
}

/// `bk restore`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk restore                                   newest archive, everything\n  bk restore --date 2026-08-22 --exclude caddy  that day, without Caddy\n  bk restore --only files/photos --into files=/tmp/look\n  bk restore backups/backup.2026-08-22.tar.xz  a file\n  bk restore dump.sql.gz --into mysql=shop      what bk did not make: a dump, a folder, a tar of Tutor's backup plugin"
)]
pub struct RestoreArgs {
    /// An archive that is a file here; or a dump, a folder, a tar that bk did not make
    pub file: Option<PathBuf>,
    /// Which archive.
    #[command(flatten)]
    pub which: Which,
    /// Only these: instance, instance/group, instance/group/unit; globs in each part
    #[arg(long, value_name = "SELECTOR", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Not these; wins over --only
    #[arg(long, value_name = "SELECTOR", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// Another name or place: instance/group=new, instance=PLACE
    #[arg(long, value_name = "FROM=TO")]
    pub into: Vec<String>,
    /// The archive's instance OLD goes to the source NEW here; of what bk did not make: the file or folder OLD
    #[arg(long = "as", value_name = "OLD=NEW")]
    pub renamed: Vec<String>,
    /// What to do with things that are there: refuse, merge (the archive wins, the rest stays) or replace (what is selected ends equal to the archive)
    #[arg(long, value_enum)]
    pub existing: Option<ExistingArg>,
    /// Print versions (id and time), 20 without a number, and end
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20", require_equals = true)]
    pub list_versions: Option<usize>,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Restore from a partial archive what is whole in it, and a dump that was cut off
    #[arg(long)]
    pub allow_partial: bool,
    /// Do not check every selected block before the first byte is written
    #[arg(long)]
    pub no_verify_first: bool,
    /// Refuse when the target is the very server that the archive came from
    #[arg(long)]
    pub standby: bool,
    /// Give back setuid and setgid bits
    #[arg(long)]
    pub keep_setuid: bool,
    /// Write symbolic links that lead out of their folder
    #[arg(long)]
    pub outward_links: bool,
    /// Forget the mark that an unfinished restore left, write nothing
    #[arg(long, value_name = "SOURCE", conflicts_with_all = ["only", "exclude", "date", "version"])]
    pub forget_unfinished: Option<String>,
    /// Wait for another run of the same settings file: 30s, 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait_lock: Option<std::time::Duration>,
}

/// What a restore does with things that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExistingArg {
    /// Stop before anything is written.
    Refuse,
    /// The archive wins, the rest stays.
    Merge,
    /// What is selected ends equal to the archive.
    Replace,
}

/// `bk list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this sink
    #[arg(long, value_name = "SINK")]
    pub from: Option<String>,
    /// Also archives of other sites, damaged ones, and those that bk did not make
    #[arg(long)]
    pub all: bool,
    /// Go on although a sink does not answer
    #[arg(long)]
    pub offline_ok: bool,
    /// Exit 9 when the newest whole archive is older: 36h, 2d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub max_age: Option<std::time::Duration>,
}

/// `bk show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An archive that is a file here
    pub file: Option<PathBuf>,
    /// Which archive.
    #[command(flatten)]
    pub which: Which,
    /// Also every unit with its counts
    #[arg(long)]
    pub units: bool,
}

/// `bk verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An archive that is a file here, or a folder, tar or file that others made
    pub file: Option<PathBuf>,
    /// Which archive.
    #[command(flatten)]
    pub which: Which,
    /// Every archive on every sink
    #[arg(long, conflicts_with_all = ["file", "date", "version"])]
    pub all: bool,
}

/// `bk extract`
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// An archive that is a file here
    pub file: Option<PathBuf>,
    /// Which archive.
    #[command(flatten)]
    pub which: Which,
    /// The folder to write into; with --as a form that is one file, that file
    #[arg(long, value_name = "PATH")]
    pub into: PathBuf,
    /// As another tool would have written it: `mongodump` (a folder), `mongodump-archive` (a file)
    #[arg(long = "as", value_name = "FORM")]
    pub form: Option<String>,
    /// Only these
    #[arg(long, value_name = "SELECTOR", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Not these; wins over --only
    #[arg(long, value_name = "SELECTOR", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// What to do with files that are there
    #[arg(long, value_enum, default_value_t = ExistingArg::Refuse)]
    pub existing: ExistingArg,
    /// Give back setuid and setgid bits
    #[arg(long)]
    pub keep_setuid: bool,
    /// Write symbolic links that lead out of the folder
    #[arg(long)]
    pub outward_links: bool,
    /// Bytes that may come out for each byte stored
    #[arg(long, value_name = "N", default_value_t = bk_core::extract::RATIO_MAX)]
    pub max_ratio: u64,
    /// Extract from a partial archive what is whole in it
    #[arg(long)]
    pub allow_partial: bool,
}

/// `bk prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only this sink
    #[arg(long, value_name = "SINK")]
    pub from: Option<String>,
    /// Say what would go and why the rest stays; delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the reason for every archive
    #[arg(long)]
    pub explain: bool,
    /// Release what holds retention while this archive is the newest
    #[arg(long, value_name = "ARCHIVE")]
    pub accept: Option<String>,
    /// Wait for another run of the same settings file: 30s, 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait_lock: Option<std::time::Duration>,
}

/// `bk pin`, `bk unpin`
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Which archive.
    #[command(flatten)]
    pub which: Which,
    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub label: String,
}

/// `bk check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print the least rights that a backup into this sink needs, and end
    #[arg(long, value_name = "SINK")]
    pub policy: Option<String>,
    /// Exit 9 when the newest whole archive is older: 36h, 2d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub max_age: Option<std::time::Duration>,
}

/// `bk config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every value with its origin; secrets are masked
    Show,
    /// Check the settings without connecting to anything
    Validate,
    /// Print the settings of a PC that fetches from a cluster's backup node: `bk config import cluster-config.json > plugins.toml`
    Import {
        /// The file that describes the cluster: `nodes` with `name`, `ipv6`, `user`, `is_backup`, `ssh_key_path`
        file: PathBuf,
        /// The node to fetch from; without it the only one with `is_backup` or the role `backup`
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
}

/// `bk plugins`
#[derive(Debug, Subcommand)]
pub enum PluginsCommand {
    /// List all plugins
    List {
        /// Only the enabled ones
        #[arg(short, long)]
        enabled: bool,
    },
    /// Print a plugin's settings
    Show {
        /// The plugin
        name: String,
    },
}

/// `30s`, `10m`, `36h`, `2d`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let Span(length) = text.parse()?;
    std::time::Duration::try_from(length).map_err(|e| e.to_string())
}
