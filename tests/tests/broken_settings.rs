//! Broken settings: exit 4, every mistake with file, line, column and a hint.

use bk_tests::binary::Home;
use bk_tests::{Outcome, hold};

const GOOD: &str = "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"src\"\n[sink.local]\npath = \"out\"\n";

/// Text of the file, and what must be said: place and words.
const BROKEN: &[(&str, &str, &[&str])] = &[
    (
        "syntax: no value",
        "format = 1\nplugins =\n",
        &["plugins.toml:2:"],
    ),
    (
        "syntax: open text",
        "format = 1\nplugins = [\"files]\n",
        &["plugins.toml:2:"],
    ),
    (
        "syntax: two keys on a line",
        "format = 1 plugins = []\n",
        &["plugins.toml:1:"],
    ),
    (
        "syntax: a key twice",
        "format = 1\nformat = 1\n",
        &["plugins.toml:2:"],
    ),
    (
        "empty",
        "",
        &["`format` is missing", "`plugins` is missing"],
    ),
    (
        "format of tomorrow",
        "format = 7\nplugins = [\"local\"]\n",
        &["plugins.toml:1:1", "`format` is `7`"],
    ),
    (
        "format as text",
        "format = \"1\"\nplugins = [\"local\"]\n[sink.local]\npath = \"o\"\n",
        &["`format` is"],
    ),
    (
        "plugins as text",
        "format = 1\nplugins = \"files\"\n",
        &["plugins.toml:2:1", "no list of names"],
    ),
    (
        "a plugin that is not",
        "format = 1\nplugins = [\"file\", \"local\"]\n[sink.local]\npath = \"o\"\n",
        &[
            "plugins.toml:2:1",
            "there is no plugin `file`",
            "did you mean `files`?",
        ],
    ),
    (
        "unknown key at the top",
        "format = 1\nplugin = 1\nplugins = [\"local\"]\n[sink.local]\npath = \"o\"\n",
        &[
            "plugins.toml:2:1",
            "`plugin` is no table",
            "did you mean `plugins`?",
        ],
    ),
    (
        "unknown key of a source",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npth = \"s\"\n[sink.local]\npath = \"o\"\n",
        &[
            "plugins.toml:4:1",
            "`pth` is no setting here",
            "did you mean `path`?",
            "`path` is missing",
        ],
    ),
    (
        "unknown key of archive",
        "format = 1\nplugins = [\"local\"]\n[archive]\ntimezon = \"UTC\"\n[sink.local]\npath = \"o\"\n",
        &["plugins.toml:4:1", "did you mean `timezone`?"],
    ),
    (
        "unknown key of keep",
        "format = 1\nplugins = [\"local\"]\n[sink.local]\npath = \"o\"\nkeep = { dayly = 7 }\n",
        &["plugins.toml:5:1", "dayly"],
    ),
    (
        "wrong type",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = 7\n[sink.local]\npath = [\"o\"]\n",
        &["plugins.toml:4:1", "plugins.toml:6:1"],
    ),
    (
        "missing path",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\n[sink.local]\n",
        &[
            "plugins.toml:3:9",
            "plugins.toml:4:7",
            "`path` is missing",
            "add `path = …`",
        ],
    ),
    (
        "no sink",
        "format = 1\nplugins = [\"files\"]\n[source.files]\npath = \"s\"\n",
        &["no sink is set"],
    ),
    (
        "a source that is a sink",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.local]\npath = \"s\"\n[sink.local]\npath = \"o\"\n",
        &["plugins.toml:3:9", "`local` is no source"],
    ),
    (
        "an empty list",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"s\"\ninclude = []\n[sink.local]\npath = \"o\"\n",
        &[
            "plugins.toml:5:1",
            "empty list",
            "leave the key out to mean all",
        ],
    ),
    (
        "a bad glob",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.files]\npath = \"s\"\nexclude = [\"a[\"]\n[sink.local]\npath = \"o\"\n",
        &["plugins.toml:5:1"],
    ),
    (
        "a bad site",
        "format = 1\nplugins = [\"local\"]\n[archive]\nsite = \"a/b\"\n[sink.local]\npath = \"o\"\n",
        &["plugins.toml:4:1", "`site` is `a/b`"],
    ),
    (
        "a bad zone, preset and memory",
        "format = 1\nplugins = [\"local\"]\n[archive]\ntimezone = \"Mars/Olympus\"\npreset = 12\nmemory = \"1 MiB\"\n[sink.local]\npath = \"o\"\n",
        &[
            "plugins.toml:4:1",
            "plugins.toml:5:1",
            "plugins.toml:6:1",
            "3 mistakes",
        ],
    ),
    (
        "an instance that is no table",
        "format = 1\nplugins = [\"local\"]\nsource.files = \"s\"\n[sink.local]\npath = \"o\"\n",
        &["`source.files` is no table"],
    ),
    (
        "a bad instance name",
        "format = 1\nplugins = [\"files\", \"local\"]\n[source.\"a b\"]\nplugin = \"files\"\npath = \"s\"\n[sink.local]\npath = \"o\"\n",
        &["`a b` cannot name a source"],
    ),
];

/// A whole file but for one mistake: what takes the place of what, and what must be said.
const ONE_MISTAKE: &[(&str, &str, &[&str])] = &[
    (
        "format = 1",
        "format = 1.5",
        &["plugins.toml:1:1: `format` is `1.5`"],
    ),
    ("format = 1", "format = 0x", &["plugins.toml:1:"]),
    (
        "format = 1",
        "format = 1\nformat.a = 2",
        &["plugins.toml:2:"],
    ),
    (
        "format = 1\n",
        "",
        &["plugins.toml:1:1: `format` is missing"],
    ),
    (
        "\"files\", \"local\"",
        "\"files\", 7",
        &["plugins.toml:2:1: `plugins` is no list of names"],
    ),
    (
        "\"files\", \"local\"",
        "\"files\" \"local\"",
        &["plugins.toml:2:"],
    ),
    (
        "\"files\", \"local\"",
        "\"files\", \"lokal\"",
        &[
            "plugins.toml:2:1: there is no plugin `lokal`",
            "did you mean `local`?",
        ],
    ),
    (
        "plugins",
        "plugin",
        &["`plugin` is no table", "`plugins` is missing"],
    ),
    ("path = \"src\"", "path = src", &["plugins.toml:4:"]),
    ("path = \"src\"", "path = \"src", &["plugins.toml:4:"]),
    ("path = \"src\"", "path = 'src\"", &["plugins.toml:4:"]),
    ("path = \"src\"", "path = \"a\\qb\"", &["plugins.toml:4:"]),
    ("path = \"src\"", "path : \"src\"", &["plugins.toml:4:"]),
    ("path = \"src\"", "= \"src\"", &["plugins.toml:4:"]),
    ("path = \"src\"", "path = { a = 1", &["plugins.toml:5:1:"]),
    ("[source.files]", "[source.files", &["plugins.toml:3:"]),
    ("[source.files]", "[source..files]", &["plugins.toml:3:"]),
    (
        "[source.files]",
        "[[source.files]]",
        &["plugins.toml:3:", "`source.files` is no table"],
    ),
    (
        "[source.files]",
        "[source]\nfiles = \"src\"\n[source.more]",
        &["plugins.toml:4:1: `source.files` is no table"],
    ),
    (
        "[source.files]",
        "[source.\"a b\"]",
        &["plugins.toml:3:", "`a b` cannot name a source"],
    ),
    (
        "[source.files]",
        "[source.files]\n[source.files]",
        &["plugins.toml:4:"],
    ),
    (
        "[source.files]",
        "[sauce.files]",
        &[
            "plugins.toml:3:",
            "`sauce` is no setting here",
            "did you mean `source`?",
        ],
    ),
    (
        "path = \"src\"",
        "path = 7",
        &[
            "plugins.toml:4:1: [source.files]: `path`: invalid type: integer `7`",
            "`path` is: ",
        ],
    ),
    (
        "path = \"src\"",
        "path = [\"src\"]",
        &["plugins.toml:4:1: [source.files]: `path`: invalid type"],
    ),
    (
        "path = \"src\"",
        "path = true",
        &["plugins.toml:4:1: [source.files]: `path`: invalid type"],
    ),
    (
        "path = \"src\"",
        "Path = \"src\"",
        &[
            "plugins.toml:4:1: [source.files]: `Path` is no setting here",
            "did you mean `path`?",
        ],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nexclude = \"*.tmp\"",
        &["plugins.toml:5:1: [source.files]: `exclude`: invalid type"],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nexclude = []",
        &[
            "plugins.toml:5:1: [source.files]: `exclude` is an empty list",
            "leave the key out to mean all",
        ],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nexclude = [\"a[\"]",
        &["plugins.toml:5:1: [source.files]", "a["],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nkeep = { last = 3 }",
        &["plugins.toml:5:1: [source.files]: `keep` is no setting here"],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nplugin = \"local\"",
        &["[source.files]: `local` is no source"],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nafter = [\"k8s\"]",
        &["plugins.toml:5:1: [source.files]: `after`: there is no source `k8s`"],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nbefore_backup = \"stop\"",
        &["plugins.toml:5:1: [source.files]: `before_backup`: invalid type"],
    ),
    (
        "path = \"src\"",
        "path = \"src\"\nbefore_backup = { command = [\"x\"], timeout = \"soon\" }",
        &[
            "plugins.toml:5:",
            "`soon` is no duration; write 30s, 10m, 36h or 2d",
        ],
    ),
    (
        "path = \"out\"",
        "",
        &[
            "plugins.toml:5:7: [sink.local]: `path` is missing",
            "add `path = …`",
        ],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nrequired = \"no\"",
        &["plugins.toml:7:1: [sink.local]: `required`: invalid type"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nkeep = 10",
        &["plugins.toml:7:1: [sink.local]: `keep`: invalid type"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nkeep = { dayly = 7 }",
        &["plugins.toml:7:", "dayly", "did you mean `daily`?"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nkeep = { daily = -1 }",
        &["plugins.toml:7:", "keep"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nkeep = { daily = \"6m\" }",
        &["plugins.toml:7:", "keep"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nprune = \"sometimes\"",
        &["plugins.toml:7:1: [sink.local]: `prune`: unknown variant `sometimes`"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nlayout = \"dayly\"",
        &["plugins.toml:7:1: [sink.local]: `layout`: unknown variant `dayly`"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nfetch = { from = \"node\" }",
        &["plugins.toml:7:1: [sink.local]: `fetch`: there is no other sink `node`"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\nfetch = { }",
        &["plugins.toml:7:1: [sink.local]: `fetch`: missing field `from`"],
    ),
    (
        "[source.files]",
        "[archive]\nsites = \"a\"\n[source.files]",
        &[
            "plugins.toml:4:1: [archive]: `sites` is no setting here",
            "did you mean `site`?",
        ],
    ),
    (
        "[source.files]",
        "[archive]\nsite = \"a b\"\n[source.files]",
        &["plugins.toml:4:1: [archive]: `site` is `a b`"],
    ),
    (
        "[source.files]",
        "[archive]\ntimezone = \"Mars/Olympus\"\n[source.files]",
        &["plugins.toml:4:1: [archive]: there is no time zone `Mars/Olympus`"],
    ),
    (
        "[source.files]",
        "[archive]\npreset = 10\n[source.files]",
        &["plugins.toml:4:1: [archive]: `preset` is 10"],
    ),
    (
        "[source.files]",
        "[archive]\nmemory = \"12 parsecs\"\n[source.files]",
        &["plugins.toml:4:1: [archive]: `memory`: `12 parsecs` is no number of bytes"],
    ),
    (
        "[source.files]",
        "[archive]\nmemory = \"1 MiB\"\n[source.files]",
        &["plugins.toml:4:1: [archive]: `memory` is 1048576 bytes"],
    ),
    (
        "[source.files]",
        "[archive]\nworkers = 0\n[source.files]",
        &["plugins.toml:4:1: [archive]: `workers` is 0"],
    ),
    (
        "format = 1",
        "format = 1\narchive = \"main\"",
        &["plugins.toml:2:1: `archive` is no table"],
    ),
    (
        "format = 1",
        "format = 1\ninclude = [\"plugins.toml\"]",
        &[
            "plugins.toml:2:1: `include` is no setting here",
            "settings are one file",
        ],
    ),
    (
        "format = 1",
        "format = 1\nhook = { on = \"backup.done\" }",
        &["plugins.toml:2:1: `hook` is no list of tables", "[[hook]]"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\n[[hook]]\non = \"backup.fail\"\nrun = [\"x\"]",
        &[
            "[[hook]] 1: `on`: there is no moment `backup.fail`",
            "did you mean `backup.failed`?",
        ],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\n[[hook]]\non = \"backup.failed\"\nrun = []",
        &["[[hook]] 1: `run` is an empty list"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\n[[hook]]\non = \"backup.failed\"",
        &["[[hook]] 1: `run` is missing"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\n[plugin.ldap]\nversion = \"1\"",
        &["plugins.toml:7:", "[plugin.ldap]: `sha256` is missing"],
    ),
    (
        "path = \"out\"",
        "path = \"out\"\n[sink.store]\nplugin = \"local\"",
        &["plugins.toml:7:", "[sink.store]: `path` is missing"],
    ),
    (
        "\"local\"]",
        "\"local\", \"http\"]\n[source.doc]\nplugin = \"http\"\nurl = \"catalog/export\"",
        &["plugins.toml:5:1: [source.doc]: `url`: `catalog/export` is no address"],
    ),
    (
        "\"local\"]",
        "\"local\", \"http\"]\n[source.doc]\nplugin = \"http\"\nurl = \"http://a:b@c/d\"",
        &["plugins.toml:5:1: [source.doc]: `url` has a password in it"],
    ),
    (
        "\"local\"]",
        "\"local\", \"http\"]\n[source.doc]\nplugin = \"http\"\nurl = \"http://c/d\"\nrestore = { method = \"SEND\" }",
        &["plugins.toml:6:", "unknown variant `SEND`"],
    ),
    (
        "\"local\"]",
        "\"local\", \"env\"]\n[source.env]\nprefix = \"\"",
        &["plugins.toml:4:1: [source.env]: `prefix` is ``"],
    ),
    (
        "\"local\"]",
        "\"local\", \"command\"]\n[source.command]\nbackup = \"dump\"",
        &["plugins.toml:4:1: [source.command]: `backup`: invalid type"],
    ),
    (
        "\"local\"]",
        "\"local\", \"command\"]\n[source.command]\nbackup = [\"dump\"]\nentry = \"../x\"",
        &["plugins.toml:5:1: [source.command]: `entry`"],
    ),
    (
        "\"local\"]",
        "\"local\", \"command\"]\n[source.command]\nbackup = [\"dump\"]\nenv = { A = { fil = \"x\" } }",
        &["plugins.toml:5:", "unknown field `fil`"],
    ),
];

/// Bytes that are no text, or no text that anybody wrote.
fn strange_bytes() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let utf_16 = |big: bool| {
        let mark: [u8; 2] = if big { [0xfe, 0xff] } else { [0xff, 0xfe] };
        let words = GOOD.encode_utf16();
        let bytes = words.flat_map(move |word| {
            if big {
                word.to_be_bytes()
            } else {
                word.to_le_bytes()
            }
        });
        mark.into_iter().chain(bytes).collect::<Vec<u8>>()
    };
    vec![
        (
            "UTF-16, little end first",
            utf_16(false),
            "plugins.toml:1:1: the file is UTF-16",
        ),
        (
            "UTF-16, big end first",
            utf_16(true),
            "plugins.toml:1:1: the file is UTF-16",
        ),
        (
            "a zero byte",
            GOOD.replace("src", "s\0c").into_bytes(),
            "plugins.toml:4:1: there is a zero byte in the file",
        ),
        (
            "latin 1",
            [GOOD.as_bytes(), b"# caf\xe9\n"].concat(),
            "plugins.toml:7:1: the file is not UTF-8",
        ),
        (
            "a truncated character",
            [GOOD.as_bytes(), b"# \xe2\x82"].concat(),
            "plugins.toml:7:1: the file is not UTF-8",
        ),
        (
            "the mark in the middle",
            GOOD.replace("[source", "\u{feff}[source").into_bytes(),
            "plugins.toml:3:",
        ),
        (
            "a lone carriage return",
            GOOD.replace("\n[source", "\r[source").into_bytes(),
            "plugins.toml:2:",
        ),
        (
            "a compressed file",
            vec![0x1f, 0x8b, 8, 1, 2, 3, 0xff, 0xfe],
            "plugins.toml:1:1: the file is not UTF-8",
        ),
    ]
}

fn is_refused(name: &str, bytes: &[u8], words: &[&str]) -> Outcome {
    let home = Home::new("");
    home.write("plugins.toml", bytes);
    let ran = home.bk(&["config", "validate"]);
    let said = |what: &str| format!("{name}: {what}: exit {}\n{}", ran.code, ran.stderr);
    hold(ran.code == 4, || said("it is no 4"))?;
    for word in words {
        hold(ran.stderr.contains(word), || {
            said(&format!("`{word}` is not said"))
        })?;
    }
    let has_place = ran.stderr.contains("plugins.toml:") && ran.stderr.contains("hint: ");
    hold(has_place && !ran.stderr.contains("panicked"), || {
        said("it has no place or no hint")
    })?;
    hold(home.bk(&["backup"]).code == 4, || said("a backup ran"))
}

fn all_hold(outcomes: impl Iterator<Item = Outcome>) {
    let wrong: Vec<_> = outcomes.filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_broken_file_is_exit_4_with_place_and_hint_and_never_a_panic() {
    assert!(BROKEN.len() + ONE_MISTAKE.len() + strange_bytes().len() >= 60);
    all_hold(
        BROKEN
            .iter()
            .map(|(name, text, words)| is_refused(name, text.as_bytes(), words)),
    );
}

#[test]
fn one_mistake_in_a_whole_file_is_named_with_its_line_and_column() {
    all_hold(ONE_MISTAKE.iter().map(|(good, wrong, words)| {
        let text = GOOD.replacen(good, wrong, 1);
        assert_ne!(text, GOOD, "{good}");
        is_refused(wrong, text.as_bytes(), words)
    }));
}

#[test]
fn what_is_no_text_is_named_for_what_it_is() {
    all_hold(
        strange_bytes()
            .iter()
            .map(|(name, bytes, words)| is_refused(name, bytes, &[words])),
    );
}

#[test]
fn marks_and_line_ends_of_other_systems_are_read() {
    for text in [
        format!("\u{feff}{GOOD}"),
        GOOD.replace('\n', "\r\n"),
        format!("\u{feff}{}", GOOD.replace('\n', "\r\n")),
        GOOD.trim_end().to_owned(),
    ] {
        let home = Home::new(&text);
        home.bk(&["config", "validate"]).ended(0);
        home.write("plugins.toml", text.replace("path = \"out\"", "path = 7"));
        let ran = home.bk(&["config", "validate"]).ended(4);
        assert!(
            ran.stderr.contains("plugins.toml:6:1: [sink.local]"),
            "{}",
            ran.stderr
        );
    }
}
