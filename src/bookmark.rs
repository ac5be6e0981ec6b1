//! `holdfast bookmark`: points in the past of a copy, for backups that read only what changed.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use replicator::control::json::BookmarkReport;

use crate::cli::BookmarkCommand;
use crate::output::{self, human_bytes};
use crate::role::report;
use crate::table::Table;
use crate::target;

/// Makes, lists, ends bookmarks.
pub(crate) fn run(command: &BookmarkCommand) -> Result<()> {
    match command {
        BookmarkCommand::Add(arguments) => {
            let client = target::client(&arguments.on.target)?;
            report(client.add_bookmark(&arguments.on.volume, &arguments.name), arguments.on.json)
        }
        BookmarkCommand::Delete(arguments) => {
            let client = target::client(&arguments.on.target)?;
            report(client.delete_bookmark(&arguments.on.volume, &arguments.name), arguments.on.json)
        }
        BookmarkCommand::List(arguments) => {
            let client = target::client(&arguments.target)?;
            let replica =
                client.volume(&arguments.volume)?.replica.context("the replica is not running there")?;
            if arguments.json {
                output::print_json(&serde_json::json!({ "bookmarks": replica.bookmarks }), true)
            } else {
                output::print(&table(&replica.bookmarks))
            }
        }
    }
}

fn table(bookmarks: &[BookmarkReport]) -> String {
    if bookmarks.is_empty() {
        return "no bookmarks".to_owned();
    }
    let mut table = Table::new(0, &["bookmark", "at", "changed since", "context"]);
    for bookmark in bookmarks {
        table.row([
            bookmark.name.clone(),
            bookmark.position.clone(),
            human_bytes(bookmark.changed_bytes),
            bookmark.context.clone(),
        ]);
    }
    let mut out = table.render().trim_end().to_owned();
    for bookmark in bookmarks {
        if let Some(why) = &bookmark.everything {
            let _ = write!(out, "\n{}: {why}", bookmark.name);
        }
    }
    out
}
