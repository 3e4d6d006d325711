//! `bk plugins test`: the conformance kit against any plugin, ours and strangers'.

use super::{builtin, everything, no_such, root};
use crate::args::Global;
use crate::output::{data, say};
use bk_core::context::Context;
use bk_core::error::{Error, Result, settings};
use bk_core::plugin::manifest::{FILE, How, Manifest, Role, TestCommands};
use bk_core::plugin::root::remote;
use bk_core::report::Cause;
use bk_core::sink::Sink;
use bk_kit::plugin_subject::{Code, PluginSubject, Scratch, empty_sink};
use bk_kit::protocol_suite::{self, Speaker};
use bk_kit::source_suite::Subject;
use bk_kit::{Outcome, sink_suite, source_suite};
use std::path::Path;
use std::sync::Arc;

/// What of a plugin is tested.
struct Tested {
    name: String,
    role: Role,
    manifest: Option<Arc<Manifest>>,
    test: TestCommands,
}

pub async fn run(
    cx: &Context,
    name: &str,
    with: Option<&Path>,
    global: &Global,
) -> Result<Vec<Cause>> {
    let mut tested = find(name, global)?;
    if let Some(with) = with {
        tested.test = read(with, &tested.test)?;
    }
    let mut report = Report {
        held: 0,
        failed: Vec::new(),
    };
    match tested.role {
        Role::Source => source(cx, &tested, &mut report).await?,
        Role::Sink => sink(cx, &tested, &mut report).await?,
    }
    say(&format!(
        "{}: {} checks hold, {} do not",
        tested.name,
        report.held,
        report.failed.len()
    ));
    let failed = report.failed.into_iter().map(|(check, why)| {
        let error = Error::new(bk_core::ErrorKind::Plugin, why).within(check);
        Cause::new(&tested.name, &error)
    });
    Ok(failed.collect())
}

/// A file, a folder, or the name of a plugin here.
fn find(name: &str, global: &Global) -> Result<Tested> {
    let path = Path::new(name);
    let of = |manifest: Manifest| Tested {
        name: manifest.name.clone(),
        role: manifest.role,
        test: manifest.test.clone().unwrap_or_default(),
        manifest: Some(Arc::new(manifest)),
    };
    if path.is_dir() {
        return Manifest::read(&path.join(FILE)).map(of);
    }
    if path.is_file() {
        return Manifest::read(path).map(of);
    }
    let registry = builtin::registry();
    let role = match (registry.source(name), registry.sink(name)) {
        (Some(_), _) => Some(Role::Source),
        (_, Some(_)) => Some(Role::Sink),
        _ => None,
    };
    if let Some(role) = role {
        return Ok(Tested {
            name: name.to_owned(),
            role,
            manifest: None,
            test: ours(name),
        });
    }
    let root = root(global);
    if root.manifests()?.contains_key(name) {
        return root.manifest(name).map(of);
    }
    Err(no_such(name, &everything(global)?))
}

/// How those of this program that need no server are filled, emptied and looked at. Others take `--with FILE`.
fn ours(name: &str) -> TestCommands {
    const TREE: &str = "rm -rf \"$0\"; mkdir -p \"$0/a/x\" \"$0/a/y\" \"$0/b/z\"; printf 1 > \"$0/a/x/f\"; printf 2 > \"$0/a/y/f\"; printf 3 > \"$0/b/z/f\"";
    const LOOK: &str = "cd \"$0\" && for u in */*; do [ -d \"$u\" ] && printf '%s\\t%s\\t%s\\n' \"${u%%/*}\" \"${u#*/}\" \"$(cat \"$u\"/*)\"; done; true";
    const ADD: &str = "mkdir -p \"$0/$1/stranger\"; printf s > \"$0/$1/stranger/f\"";
    let settings = match name {
        "files" | "caddy" => "settings = { path = \"{scratch}/tree\" }",
        "local" => "settings = { path = \"{scratch}/archives\" }",
        "command" => {
            "settings = { backup = [\"cat\", \"{scratch}/f\"], restore = [\"cp\", \"/dev/stdin\", \"{scratch}/f\"] }"
        }
        _ => "",
    };
    let mut test: TestCommands = toml::from_str(settings).unwrap_or_default();
    let shell = |script: &str, more: &[&str]| {
        let words = ["sh", "-c", script].into_iter().chain(more.iter().copied());
        Some(words.map(str::to_owned).collect())
    };
    match name {
        "files" | "caddy" => {
            test.seed = shell(TREE, &["{path}"]);
            test.wipe = shell("rm -rf \"$0\"; mkdir \"$0\"", &["{path}"]);
            test.digest = shell(LOOK, &["{path}"]);
            test.stranger = shell(ADD, &["{path}", "{group}"]);
        }
        "command" => {
            test.seed = shell("printf one > \"$0\"", &["{scratch}/f"]);
            test.wipe = shell(": > \"$0\"", &["{scratch}/f"]);
            test.digest = shell("cat \"$0\"", &["{scratch}/f"]);
        }
        _ => {}
    }
    test
}

/// A file of `[settings]` and `[test]`, over what the plugin says itself.
fn read(path: &Path, of_the_plugin: &TestCommands) -> Result<TestCommands> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct With {
        #[serde(default)]
        settings: serde_json::Map<String, serde_json::Value>,
        #[serde(default)]
        test: TestCommands,
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let with: With = toml::from_str(&text)
        .map_err(|e| settings(format!("`{}`: {}", path.display(), e.message())))?;
    let or = |mine: Option<Vec<String>>, theirs: &Option<Vec<String>>| mine.or(theirs.clone());
    let settings = if with.settings.is_empty() {
        of_the_plugin.settings.clone()
    } else {
        with.settings
    };
    Ok(TestCommands {
        settings,
        seed: or(with.test.seed, &of_the_plugin.seed),
        wipe: or(with.test.wipe, &of_the_plugin.wipe),
        digest: or(with.test.digest, &of_the_plugin.digest),
        stranger: or(with.test.stranger, &of_the_plugin.stranger),
        not_asked: with.test.not_asked,
    })
}

struct Report {
    held: usize,
    failed: Vec<(&'static str, String)>,
}

impl Report {
    fn told(&mut self, name: &'static str, outcome: Outcome) {
        match outcome {
            Ok(()) => {
                data(&format!("ok         {name}"));
                self.held += 1;
            }
            Err(why) => {
                data(&format!("FAILED     {name}: {why}"));
                self.failed.push((name, why));
            }
        }
    }
}

async fn source(cx: &Context, tested: &Tested, report: &mut Report) -> Result<()> {
    let code = if let Some(manifest) = &tested.manifest {
        Code::Outside(manifest.clone())
    } else {
        let registry = builtin::registry();
        let plugin = registry
            .source(&tested.name)
            .ok_or_else(|| no_such(&tested.name, &registry))?;
        Code::BuiltIn(plugin.build.clone())
    };
    let subject = PluginSubject::new(code, tested.test.clone(), cx.clone()).await?;
    for (name, check) in source_suite::CHECKS {
        if let Some(why) = subject.not_asked(name) {
            data(&format!("not asked  {name}: {why}"));
            continue;
        }
        let outcome = check(&subject).await;
        if let Some(wrong) = subject.wrong() {
            return Err(settings(wrong));
        }
        report.told(name, outcome);
    }
    if let Some(manifest) = is_process(tested) {
        subject.wipe().await;
        subject.seed().await;
        let speaker = Speaker::new(manifest, subject.remote()?).await;
        let speaker = speaker.map_err(|why| Error::new(bk_core::ErrorKind::Plugin, why))?;
        for (name, check) in protocol_suite::CHECKS {
            report.told(name, check(&speaker).await);
        }
    }
    Ok(())
}

async fn sink(cx: &Context, tested: &Tested, report: &mut Report) -> Result<()> {
    let empty = || -> Result<(Scratch, Arc<dyn Sink>)> {
        if let Some(manifest) = &tested.manifest {
            empty_sink(manifest, &tested.test)
        } else {
            let registry = builtin::registry();
            let plugin = registry
                .sink(&tested.name)
                .ok_or_else(|| no_such(&tested.name, &registry))?;
            let scratch = Scratch::new(&tested.test)?;
            let sink = (plugin.build)(scratch.settings.clone())?;
            Ok((scratch, sink))
        }
    };
    for (name, check) in sink_suite::CHECKS {
        let (_scratch, sink) = empty()?;
        report.told(name, check(cx, &sink).await);
    }
    if let Some(manifest) = is_process(tested) {
        for (name, check) in protocol_suite::CHECKS {
            let scratch = Scratch::new(&tested.test)?;
            let proof = Arc::new(|| Ok(()));
            let remote = remote(&manifest, &(proof as _), &scratch.settings)?;
            let speaker = Speaker::new(manifest.clone(), remote).await;
            let speaker = speaker.map_err(|why| Error::new(bk_core::ErrorKind::Plugin, why))?;
            report.told(name, check(&speaker).await);
        }
    }
    Ok(())
}

fn is_process(tested: &Tested) -> Option<Arc<Manifest>> {
    let manifest = tested.manifest.as_ref()?;
    matches!(manifest.how, How::Protocol(_)).then(|| manifest.clone())
}
