//! Every flag. The same flag means the same everywhere; nothing else knows clap.

use bk_core::layout::Tier;
use bk_core::settings::Span;
use bk_core::verify::Level;
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
    /// Kubernetes: manifests that run bk in a cluster, and workloads that a restore stopped
    #[command(subcommand)]
    K8s(K8sCommand),
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
    Man {
        /// Every command's page as a file in this folder, in place of the first page here
        #[arg(long, value_name = "FOLDER")]
        into: Option<PathBuf>,
    },
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
    /// Into this tier of sinks with `layout = "tiers"`: daily, weekly, monthly, yearly. A verified archive of its period that is younger than 6 h
    /// is placed there instead of making another, unless --label, --pin, --only or --exclude asks for one. Without it: daily, and the first of a week, a month and a year is promoted
    #[arg(long, value_name = "TIER", value_parser = tier)]
    pub tier: Option<Tier>,
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
    /// Into a standby site: refuse when the target is the very server that the archive came from; what starts by its own clock stays suspended
    #[arg(long)]
    pub standby: bool,
    /// Only when the archive is newer than what the standby site has: else 0 when it has it, 6 when it is older or another site's
    #[arg(long, requires = "standby")]
    pub if_newer: bool,
    /// Exit 9 when the restored archive is older: 36h, 2d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub max_age: Option<std::time::Duration>,
    /// Who the target of a standby restore is, where it cannot be asked
    #[arg(long, value_name = "ID", requires = "standby")]
    pub cluster_id: Option<String>,
    /// Where a standby site remembers what it has; without it the `ConfigMap` bk-standby, else bk-standby.json beside the settings
    #[arg(long, value_name = "FILE", requires = "standby")]
    pub standby_state: Option<PathBuf>,
    /// Kubernetes: delete and make anew what the server calls immutable; never volumes, claims, namespaces and definitions
    #[arg(long)]
    pub recreate: bool,
    /// Kubernetes, with --existing replace: delete objects of the selected namespaces that the archive does not have
    #[arg(long)]
    pub prune_objects: bool,
    /// Kubernetes: `CronJob`s that were suspended meanwhile may start what they missed
    #[arg(long)]
    pub catch_up: bool,
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
    /// So many of all copies, those that were not read for the longest time: run daily, 5% reads each within 20 days
    #[arg(long, value_name = "SHARE", value_parser = percent, conflicts_with_all = ["file", "date", "version", "all"])]
    pub sample: Option<f64>,
    /// All copies that were not read for so long: 30d; with --sample those too
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["file", "date", "version", "all"])]
    pub max_age: Option<std::time::Duration>,
    /// How far: manifest and index (listed), every stored byte (hash), or every block decoded and counted (decoded)
    #[arg(long, value_enum, default_value_t = LevelArg::Decoded)]
    pub level: LevelArg,
}

/// How far an archive is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    /// Manifest and index.
    Listed,
    /// Every stored byte.
    Hash,
    /// Every block.
    Decoded,
}

impl From<LevelArg> for Level {
    fn from(arg: LevelArg) -> Self {
        match arg {
            LevelArg::Listed => Self::Listed,
            LevelArg::Hash => Self::Hash,
            LevelArg::Decoded => Self::Decoded,
        }
    }
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
    /// Print the reason for every archive, a picture of the months, and what the next day's run will let go
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
    /// Change the settings; comments and order stay. A change that would make good settings wrong is not written
    Save {
        /// Set, like --set: -s source.mysql.host=db
        #[arg(short = 's', value_name = "KEY=VALUE")]
        assign: Vec<String>,
        /// Add an element to a list: source.mysql.databases=shop
        #[arg(short, long, value_name = "KEY=VALUE")]
        append: Vec<String>,
        /// Take an element out of a list
        #[arg(short = 'A', long, value_name = "KEY=VALUE")]
        remove: Vec<String>,
        /// Remove a key or a table: sink.s3.required
        #[arg(short = 'U', long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Print one value: archive.timezone
    Printvalue {
        /// The key
        key: String,
    },
    /// Print the folder of the settings file
    Printroot,
    /// Open the settings in $EDITOR, and check them afterwards
    Edit,
    /// Print the settings of a PC that fetches from a cluster's backup node: `bk config import cluster-config.json > plugins.toml`
    Import {
        /// The file that describes the cluster: `nodes` with `name`, `ipv6`, `user`, `is_backup`, `ssh_key_path`
        file: PathBuf,
        /// The node to fetch from; without it the only one with `is_backup` or the role `backup`
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
}

/// What of a cluster `bk` is rendered for.
#[derive(Debug, Args)]
pub struct RenderArgs {
    /// A site that is known: its namespace, labels, volumes and hours
    #[arg(long, value_enum)]
    pub profile: Option<ProfileArg>,
    /// Where it runs; without it `bk`, or the profile's
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Beginning of all names
    #[arg(long, value_name = "NAME", default_value = "bk")]
    pub name: String,
    /// The image of bk
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// The Secret with what the settings read from the environment (key = variable) or from files (key = file name)
    #[arg(long, value_name = "NAME", default_value = "bk")]
    pub secret: String,
    /// How far rights on objects reach; twice for backup and restore
    #[arg(long, value_enum)]
    pub rights: Vec<RightsArg>,
    /// Objects of this group of extensions too: cert-manager.io
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// A claim, and where runs see it: caddy=/data/caddy
    #[arg(long, value_name = "CLAIM=PATH")]
    pub claim: Vec<String>,
    /// Run on the machine of a pod with this label, whose claim is read: app=web
    #[arg(long, value_name = "KEY=VALUE")]
    pub near: Option<String>,
    /// User and group of the process, for volumes that are another's
    #[arg(long, value_name = "UID")]
    pub user: Option<i64>,
    /// A volume of each run's own: 10Gi
    #[arg(long, value_name = "SIZE")]
    pub scratch: Option<String>,
    /// Class of that volume
    #[arg(long, value_name = "CLASS", requires = "scratch")]
    pub scratch_class: Option<String>,
    /// A network that runs may reach; nothing else then, but for names. Among them must be the API, the databases and the sinks
    #[arg(long, value_name = "CIDR")]
    pub network_policy: Vec<String>,
    /// A standby site: its backups are suspended, and it is restored every night
    #[arg(long)]
    pub standby: bool,
    /// Zone of the schedules; without it that of the archives
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
}

/// A known site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// An Open edX site run by Tutor.
    Tutor,
    /// Open edX on small machines, with `CouchDB`.
    CouchdbOpenedx,
}

/// How far rights reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RightsArg {
    /// Reads the namespaces that the settings name.
    NamespaceBackup,
    /// Reads all, and what they need of the cluster.
    ClusterBackup,
    /// Writes the namespaces that the settings name.
    NamespaceRestore,
    /// Writes all, roles and definitions of the cluster among it.
    ClusterRestore,
}

/// `bk k8s`
#[derive(Debug, Subcommand)]
pub enum K8sCommand {
    /// Print manifests: accounts, rights, settings, `CronJob`s. Secrets are named, never written
    Render(Box<RenderArgs>),
    /// Run once, now, as a Job: bk k8s run backup -- --label before-upgrade
    Run {
        /// backup, restore, verify, prune, check
        what: String,
        /// Print the Job and make nothing
        #[arg(long)]
        dry_run: bool,
        /// A kubeconfig file
        #[arg(long, value_name = "PATH")]
        kubeconfig: Option<PathBuf>,
        /// A context of it
        #[arg(long, value_name = "NAME")]
        context: Option<String>,
        /// As for bk k8s render
        #[command(flatten)]
        render: Box<RenderArgs>,
        /// More arguments for that run
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Let workloads run again that a restore stopped and, being killed, did not let go
    Resume {
        /// The source; without it every one of Kubernetes
        source: Option<String>,
        /// `CronJob`s may start what they missed
        #[arg(long)]
        catch_up: bool,
        /// In this namespace, where a restore gave it another name than the settings know
        #[arg(long, value_name = "NAME")]
        namespace: Vec<String>,
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
    /// Enable plugins: add them to `plugins` in the settings, and accept those of the plugins root as they are now
    Enable {
        /// Plugins
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Disable plugins: take them out of `plugins`; `all` takes out every one
    Disable {
        /// Plugins
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Print the folder that plugins lie in
    Printroot,
    /// Put plugins into the plugins root: a file, a folder, an address, or a name that an index knows. Installed is not enabled
    Install {
        /// PATH, URL, NAME or INDEX/NAME
        #[arg(required = true)]
        what: Vec<String>,
    },
    /// Install plugins anew from where they came from; `all` does so for every one
    Upgrade {
        /// Plugins
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove plugins from the plugins root, and from the settings
    Uninstall {
        /// Plugins
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Fetch the lists of the indexes
    Update,
    /// Search the indexes by name and description
    Search {
        /// Part of it; without it everything is listed
        #[arg(default_value = "")]
        pattern: String,
    },
    /// Lists of plugins that others keep
    #[command(subcommand)]
    Index(IndexCommand),
    /// Check plugins of the plugins root, and what their instances reach
    Check {
        /// The plugin
        name: String,
    },
    /// Run the conformance kit against a plugin: its name, or the path of its file or folder
    Test {
        /// NAME or PATH
        name: String,
        /// A file with what is tested: `[settings]` of the instance, and the commands `seed`, `wipe`, `digest` in `[test]`
        #[arg(long, value_name = "FILE")]
        with: Option<PathBuf>,
    },
    /// Write a plugin that works, to be changed: NAME.toml, or NAME/ with a program
    New {
        /// Its name
        name: String,
        /// A source that speaks the protocol, in Python
        #[arg(long, group = "what")]
        source: bool,
        /// A sink that speaks the protocol, in Python
        #[arg(long, group = "what")]
        sink: bool,
        /// A source of commands, in one file
        #[arg(long, group = "what")]
        command: bool,
    },
}

/// `bk plugins index`
#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// List the indexes
    List,
    /// Add an index: an address, or a path
    Add {
        /// URL or PATH
        place: String,
    },
    /// Remove an index
    Remove {
        /// URL or PATH
        place: String,
    },
}

/// `10%`.
fn percent(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no share: write 10% or 0.5%");
    let number = text.strip_suffix('%').ok_or_else(wrong)?;
    let percent: f64 = number.trim().parse().map_err(|_| wrong())?;
    if percent > 0.0 && percent <= 100.0 {
        Ok(percent)
    } else {
        Err(wrong())
    }
}

/// `daily`, `weekly`, `monthly`, `yearly`.
fn tier(text: &str) -> Result<Tier, String> {
    text.parse()
}

/// `30s`, `10m`, `36h`, `2d`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let Span(length) = text.parse()?;
    std::time::Duration::try_from(length).map_err(|e| e.to_string())
}
