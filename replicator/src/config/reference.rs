//! docs/configuration.md is held to the parser: it names the keys of each section, all of them and no others, and what it
//! says is a default is one. What a key does is not looked at.

use std::collections::BTreeSet;
use std::path::Path;

use super::{ConfigError, WithSecret, parse};

const REFERENCE: &str = include_str!("../../../docs/configuration.md");

/// A file with one of each section.
const BASE: &str = r#"[cluster]
name = "db"
secret = "0123456789abcdef"
[orchestrator]
[[node]]
name = "a"
address = "10.0.0.1"
[node.orchestrator]
watchdog = "/dev/watchdog"
[[node]]
name = "b"
address = "10.0.0.2"
[[node]]
name = "w"
address = "10.0.0.3"
[[fence]]
name = "socket"
node = "a"
agent = "fence_dummy"
[[hook]]
run = ["/bin/true"]
[[stack]]
name = "shop"
[[stack.step]]
kind = "volume"
volume = "r0"
[[stack.step]]
kind = "device"
volume = "r0"
[[stack.step]]
kind = "filesystem"
mount = "/srv"
[[stack.step]]
kind = "ocf"
agent = "ocf:heartbeat:Dummy"
[[stack.step]]
kind = "systemd"
unit = "shop"
[[stack.step]]
kind = "command"
run = ["/bin/true"]
[[volume]]
name = "r0"
uuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"
size = "1GiB"
[[volume.replica]]
node = "a"
disk = "/d/r0.disk"
journal = "/d/r0.journal"
port = 7788
[[volume.replica]]
node = "b"
disk = "/d/r0.disk"
journal = "/d/r0.journal"
port = 7788
"#;

/// A step that needs a lease longer than the default, and so is not in each file.
const ADDRESS: &str = r#"[[stack.step]]
kind = "address"
address = "10.0.0.9/24"
interface = "eth0"
"#;

/// A row of a table: keys, default, effect.
type Row = (Vec<&'static str>, &'static str, &'static str);

/// What stands between backticks.
fn quoted(text: &'static str) -> Vec<&'static str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The sections of the reference, by their headers as they stand in a file, and the rows of their tables.
fn sections() -> Vec<(&'static str, Vec<Row>)> {
    let chapters = REFERENCE.split("\n## ").filter_map(|chapter| {
        let header = chapter.strip_prefix('`')?.split('`').next()?;
        let rows = chapter.lines().filter(|line| line.starts_with("| `")).map(|line| {
            let mut cells = line.trim_matches('|').splitn(3, " | ").map(str::trim);
            let mut cell = || cells.next().unwrap_or_default();
            (quoted(cell()), cell(), cell())
        });
        Some((header, rows.collect()))
    });
    chapters.collect()
}

/// A sound file with `line` as the first of the section behind `header`.
fn with(header: &str, line: &str) -> String {
    let mut base = BASE.to_owned();
    if header.contains("address") {
        base = base.replacen("[orchestrator]\n", "[orchestrator]\nlease = \"2s\"\n", 1);
        base = base.replacen("[[volume]]\n", &format!("{ADDRESS}[[volume]]\n"), 1);
    }
    let (before, after) = base.split_once(&format!("{header}\n")).expect("there is one of each section");
    format!("{before}{header}\n{line}\n{after}")
}

/// What a file means, a line for each value, without the places in it.
fn meaning(text: &str) -> Result<Vec<String>, ConfigError> {
    let loaded = parse(Path::new("/etc/holdfast/holdfast.toml"), text, WithSecret::Yes)?;
    let lines = format!("{:#?}", loaded.cluster);
    Ok(lines.lines().filter(|line| !line.contains("..")).map(str::to_owned).collect())
}

/// The keys that the parser knows behind `header`, as it says to whoever writes another.
fn known(header: &str) -> BTreeSet<String> {
    let error = meaning(&with(header, "zzzzzzzzzzzz = 1")).expect_err("nobody knows this key").to_string();
    let list = error.split("known here: ").nth(1).and_then(|rest| rest.lines().next());
    list.unwrap_or_else(|| panic!("{header}: {error}")).split(", ").map(str::to_owned).collect()
}

/// Keys under which other sections lie.
fn is_section(key: &str) -> bool {
    ["orchestrator", "replica", "step"].contains(&key)
}

/// Kinds of steps have keys of their own; those of all are in the first table.
fn kinds(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|(_, _, effect)| effect.is_empty())
}

#[test]
fn every_key_has_a_row_and_every_row_a_key() {
    for (header, rows) in sections() {
        if header == "[[stack.step]]" {
            continue;
        }
        let told: BTreeSet<String> =
            rows.iter().flat_map(|row| &row.0).map(|key| (*key).to_owned()).collect();
        let known: BTreeSet<String> = known(header).into_iter().filter(|key| !is_section(key)).collect();
        assert_eq!(told, known, "{header}: the reference on the left, the parser on the right");
    }
}

#[test]
fn every_kind_of_step_has_its_keys_in_the_reference() {
    let sections = sections();
    let (header, rows) =
        sections.iter().find(|(header, _)| *header == "[[stack.step]]").expect("it is there");
    let common = || rows.iter().filter(|row| !row.2.is_empty()).flat_map(|row| row.0.clone());
    let mut count = 0;
    for (kind, keys, _) in kinds(rows) {
        count += 1;
        let keys = quoted(keys);
        for key in known(&format!("{header}\nkind = \"{}\"", kind[0])) {
            let is_told = common().any(|common| common == key) || keys.contains(&key.as_str());
            assert!(is_told, "{kind:?}: `{key}` is not in the reference");
        }
    }
    assert_eq!(count, 7, "kinds of steps");
}

#[test]
fn what_is_told_as_a_default_is_one() {
    let mut count = 0;
    for (header, rows) in sections() {
        let header = if header == "[[stack.step]]" { "[[stack.step]]\nkind = \"command\"" } else { header };
        for (keys, default, _) in rows.iter().filter(|(_, _, effect)| !effect.is_empty()) {
            // Others are words, or follow from something else.
            let Some(value) = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) else {
                continue;
            };
            let value = match value.chars().next() {
                Some('/') => format!("\"{}\"", value.replace("VOLUME", "r0")),
                Some('"' | '0'..='9' | 't' | 'f') => value.to_owned(),
                _ => continue,
            };
            for key in keys {
                count += 1;
                let told = meaning(&with(header, &format!("{key} = {value}"))).unwrap();
                let differs = told.into_iter().zip(meaning(BASE).unwrap()).find(|(told, base)| told != base);
                assert_eq!(differs, None, "{header}: {key} = {value}");
            }
        }
    }
    assert!(count > 50, "only {count} defaults were found");
}
