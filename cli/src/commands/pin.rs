//! `bk pin` and `bk unpin`

use super::{say_causes, wish};
use crate::args::PinArgs;
use crate::output::say;
use bk_core::catalog::Catalogue;
use bk_core::config::Config;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::pins;
use bk_core::report::Cause;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Set it.
    Pin,
    /// Take it away.
    Unpin,
}

pub async fn run(cx: &Context, config: &Config, args: &PinArgs, what: What) -> Result<Vec<Cause>> {
    // On somebody else's sink nothing is pinned from here.
    let own = config.sinks.iter().filter(|sink| !sink.policy.read_only);
    let own: Vec<_> = own.cloned().collect();
    let catalogue = Catalogue::read(cx, &own).await;
    let zone = config.archive.zone();
    let entries = catalogue.choose(&wish(&args.which, true), &zone)?;
    for entry in entries {
        let (Some(summary), sink) = (entry.summary(), config.sink(&entry.sink)?) else {
            continue;
        };
        let cx = cx.for_instance(&sink.name);
        match what {
            What::Pin => {
                pins::pin(&cx, &sink.sink, &summary.id, &args.label).await?;
                // Nobody may ever prune again: the sink's own expiry must know it now.
                sink.sink.never_expire(&cx, &entry.stored).await?;
            }
            What::Unpin => pins::unpin(&cx, &sink.sink, &summary.id).await?,
        }
        let word = if what == What::Pin {
            "pinned"
        } else {
            "no longer pinned"
        };
        say(&format!(
            "  {} on {}: {word}",
            entry.stored.name, entry.sink
        ));
    }
    // Where it could not be looked, it is not pinned.
    let unasked = catalogue.failures.iter();
    let causes: Vec<Cause> = unasked
        .map(|(sink, error)| Cause::new(sink, error))
        .collect();
    say_causes(&causes);
    Ok(causes)
}
