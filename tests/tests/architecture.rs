//! The walls of the house: who may depend on whom, and who may touch what.

use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

fn sources_in(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![top().join(folder)];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((
                    path.strip_prefix(top()).unwrap().display().to_string(),
                    std::fs::read_to_string(&path).unwrap(),
                ));
            }
        }
    }
    found
}

/// Files in which a word stands, but for those whose path begins with one of `allowed`.
fn users(folder: &str, word: &str, allowed: &[&str]) -> Vec<String> {
    sources_in(folder)
        .into_iter()
        .filter(|(path, text)| text.contains(word) && !allowed.iter().any(|a| path.starts_with(a)))
        .map(|(path, _)| path)
        .collect()
}

fn dependencies(member: &str) -> Vec<String> {
    let text = std::fs::read_to_string(top().join(member).join("Cargo.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .filter(|k| k.starts_with("bk-"))
        .cloned()
        .collect()
}

#[test]
fn arrows_point_the_way_they_should() {
    assert_eq!(dependencies("core"), Vec::<String>::new());
    assert_eq!(dependencies("sources"), ["bk-core"]);
    assert_eq!(dependencies("sinks"), ["bk-core"]);
    assert_eq!(dependencies("tests/kit"), ["bk-core"]);
    assert_eq!(
        dependencies("cli"),
        ["bk-core", "bk-kit", "bk-sinks", "bk-sources"]
    );
}

#[test]
fn only_the_archive_touches_tar_and_xz_and_only_the_context_asks_the_time() {
    for folder in ["core/src", "sources/src", "sinks/src", "cli/src"] {
        for word in ["xz2::", "tar::Archive", "tar::Header"] {
            assert_eq!(
                users(folder, word, &["core/src/archive/"]),
                Vec::<String>::new(),
                "{word}"
            );
        }
        for word in ["SystemTime::now", "Timestamp::now", "Zoned::now"] {
            assert_eq!(
                users(folder, word, &["core/src/context.rs"]),
                Vec::<String>::new(),
                "{word}"
            );
        }
        assert_eq!(
            users(
                folder,
                ".read(&self.cx, &self.which",
                &["core/src/archive/read_at.rs"]
            ),
            Vec::<String>::new()
        );
    }
}

#[test]
fn only_the_command_line_prints_reads_argv_or_exits() {
    for folder in ["core/src", "sources/src", "sinks/src"] {
        for word in [
            "println!",
            "print!(",
            "process::exit",
            "env::args",
            "clap::",
        ] {
            // What a plugin in Rust calls from its own `main` speaks over that program's input and output.
            let guest = ["core/src/plugin/guest.rs"];
            assert_eq!(users(folder, word, &guest), Vec::<String>::new(), "{word}");
        }
    }
    assert_eq!(
        users(
            "cli/src",
            "clap::",
            &["cli/src/args.rs", "cli/src/main.rs", "cli/src/commands.rs"]
        ),
        Vec::<String>::new()
    );
}

#[test]
fn core_names_no_plugin_and_no_unsafe_code_is_anywhere() {
    for word in ["bk_sources", "bk_sinks"] {
        assert_eq!(users("core/src", word, &[]), Vec::<String>::new());
    }
    for folder in [
        "core/src",
        "sources/src",
        "sinks/src",
        "cli/src",
        "tests/src",
        "tests/kit/src",
    ] {
        assert_eq!(users(folder, "unsafe {", &[]), Vec::<String>::new());
    }
}

#[test]
fn nothing_else_stands_at_the_top_level() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "plugins.toml",
        "clippy.toml",
        "core",
        "sources",
        "sinks",
        "cli",
        "tests",
        "target",
        "backups",
    ];
    let strange: Vec<_> = std::fs::read_dir(top())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with('.') && !known.contains(&n.as_str()))
        .collect();
    assert_eq!(strange, Vec::<String>::new());
}
