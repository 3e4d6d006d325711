//! `bk k8s`

use super::print_json;
use crate::args::{Global, K8sCommand};
use crate::output::say;
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::{Result, not_found, unsupported};
use bk_core::report::Cause;
use bk_core::source::ReleaseOptions;
use serde::Serialize;

pub async fn run(
    cx: &Context,
    config: &Config,
    command: K8sCommand,
    global: &Global,
) -> Result<Vec<Cause>> {
    match command {
        K8sCommand::Render(_) | K8sCommand::Run { .. } => {
            Err(unsupported("this bk was built without the plugin `k8s`"))
        }
        K8sCommand::Resume {
            source,
            catch_up,
            namespace,
        } => {
            let how = ReleaseOptions {
                catch_up,
                groups: namespace,
            };
            resume(cx, config, source.as_deref(), &how, global).await
        }
    }
}

/// What came of a resume.
#[derive(Serialize)]
struct Resumed {
    released: Vec<String>,
    causes: Vec<Cause>,
}

async fn resume(
    cx: &Context,
    config: &Config,
    name: Option<&str>,
    how: &ReleaseOptions,
    global: &Global,
) -> Result<Vec<Cause>> {
    let wanted = |source: &&bk_core::config::SourceInstance| match name {
        Some(name) => source.name == name,
        None => source.source.can_hold(),
    };
    let mut report = Resumed {
        released: Vec::new(),
        causes: Vec::new(),
    };
    let mut any = false;
    for source in config.sources.iter().filter(wanted) {
        any = true;
        let cx = cx.for_instance(&source.name);
        match source.source.release(&cx, how).await {
            Ok(released) => {
                report.released.extend(released.done);
                let held = released.held.into_iter();
                report
                    .causes
                    .extend(held.map(|what| Cause::partial(&source.name, what)));
            }
            // Another cluster's are not left stopped for that.
            Err(error) => report.causes.push(Cause::new(&source.name, &error)),
        }
    }
    if !any {
        let what = name.map_or_else(
            || "there is no source of Kubernetes objects".to_owned(),
            |name| format!("there is no source `{name}`"),
        );
        return Err(not_found(what).hint("bk config show lists the sources"));
    }
    if global.json {
        print_json(&report);
    } else {
        report
            .released
            .iter()
            .for_each(|line| say(&format!("  {line}")));
        if report.released.is_empty() && report.causes.is_empty() {
            say("nothing is stopped");
        }
    }
    super::say_causes(&report.causes);
    Ok(report.causes)
}

#[cfg(feature = "k8s")]
pub use rendering::{Reach, render, run_once};

#[cfg(feature = "k8s")]
mod rendering {
    use super::super::layers;
    use crate::args::{Global, ProfileArg, RenderArgs, RightsArg};
    use crate::builtin;
    use crate::output::{data, say};
    use bk_core::config::Config;
    use bk_core::context::Context;
    use bk_core::error::{Error, Result, settings};
    use bk_core::report::Cause;
    use bk_sources::k8s::render::jobs::{self, STANDBY};
    use bk_sources::k8s::render::sites::Site;
    use bk_sources::k8s::render::{self, Options, Rights};
    use std::path::PathBuf;

    /// How the cluster is reached in which something is run.
    pub struct Reach {
        pub kubeconfig: Option<PathBuf>,
        pub context: Option<String>,
        pub dry_run: bool,
    }

    /// Prints the manifests.
    pub fn render(args: &RenderArgs, global: &Global) -> Result<Vec<Cause>> {
        let text = render::yaml(&options(args, global)?)?;
        data(text.trim_end());
        Ok(Vec::new())
    }

    /// Makes a Job that runs once.
    pub async fn run_once(
        cx: &Context,
        global: &Global,
        args: &RenderArgs,
        (what, more): (String, Vec<String>),
        reach: Reach,
    ) -> Result<Vec<Cause>> {
        let options = options(args, global)?;
        let restores = what == "restore";
        let mut arguments = match what.as_str() {
            "restore" if args.standby => STANDBY.map(str::to_owned).to_vec(),
            "restore" => ["restore", "--yes", "--wait-lock", "30m"]
                .map(str::to_owned)
                .to_vec(),
            "backup" | "prune" => vec![what.clone(), "--wait-lock".into(), "30m".into()],
            "verify" | "check" => vec![what.clone()],
            other => {
                return Err(settings(format!("`{other}` is nothing that a Job runs"))
                    .hint("backup, restore, verify, prune or check"));
            }
        };
        arguments.extend(more);
        let stamp = cx.clock.now().strftime("%Y%m%d-%H%M%S");
        let name = format!("{}-{what}-{stamp}", options.name);
        let job = jobs::once(&options, &name, &arguments, restores)?;
        if reach.dry_run {
            data(render::commented(&job)?.trim_end());
            return Ok(Vec::new());
        }
        bk_sources::k8s::create(cx, reach.kubeconfig, reach.context, &job).await?;
        let namespace = &options.namespace;
        say(&format!(
            "Job `{name}` was made; kubectl -n {namespace} logs -f job/{name} follows it"
        ));
        Ok(Vec::new())
    }

    /// The settings file is read as any run reads it, so that what is wrong with it is found here; a secret that stands in it is refused.
    fn options(args: &RenderArgs, global: &Global) -> Result<Options> {
        let site = args.profile.map(|profile| match profile {
            ProfileArg::Tutor => Site::Tutor,
            ProfileArg::CouchdbOpenedx => Site::CouchdbOpenedx,
        });
        let layers = layers(global);
        let (text, zone) = match (layers.find(), site) {
            (Err(_), Some(site)) => {
                say(
                    "there is no settings file: the profile's own are a beginning, to be looked at",
                );
                (site.settings().to_owned(), None)
            }
            (Err(error), None) => return Err(error),
            (Ok(path), _) => {
                let config = Config::load(&layers, &builtin::registry())?;
                if let Some(clear) = config.warnings.iter().find(|w| w.contains("in the clear")) {
                    return Err(settings(clear.clone()).hint(
                        "what stands in the settings would stand in a ConfigMap, for everybody to read",
                    ));
                }
                let text =
                    std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
                (text, Some(config.archive.timezone))
            }
        };
        let mut options = Options::new(text);
        options.name.clone_from(&args.name);
        if let Some(namespace) = &args.namespace {
            options.namespace.clone_from(namespace);
        }
        if let Some(site) = site {
            site.lay_over(&mut options, args.namespace.clone());
        }
        if let Some(image) = &args.image {
            options.image.clone_from(image);
        }
        options.secret.clone_from(&args.secret);
        options.rights = args
            .rights
            .iter()
            .map(|rights| match rights {
                RightsArg::NamespaceBackup => Rights::NamespaceBackup,
                RightsArg::ClusterBackup => Rights::ClusterBackup,
                RightsArg::NamespaceRestore => Rights::NamespaceRestore,
                RightsArg::ClusterRestore => Rights::ClusterRestore,
            })
            .collect();
        options.groups.clone_from(&args.group);
        for typed in &args.claim {
            options.claims.push(pair("--claim", typed)?);
        }
        if let Some(typed) = &args.near {
            options.near = Some(pair("--near", typed)?);
        }
        options.user = args.user.unwrap_or(options.user);
        options.scratch.clone_from(&args.scratch);
        options.scratch_class.clone_from(&args.scratch_class);
        options.network.clone_from(&args.network_policy);
        options.standby = args.standby;
        if let Some(zone) = args
            .time_zone
            .clone()
            .or_else(|| zone.filter(|zone| zone != "UTC"))
        {
            options.time_zone = zone;
        }
        Ok(options)
    }

    fn pair(flag: &str, typed: &str) -> Result<(String, String)> {
        match typed.split_once('=') {
            Some((one, two)) if !one.is_empty() && !two.is_empty() => Ok((one.into(), two.into())),
            _ => {
                Err(settings(format!("`{flag} {typed}` is not understood"))
                    .hint("write it with `=`"))
            }
        }
    }
}
