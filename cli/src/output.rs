//! What a person sees: figures, tables, causes, progress. stdout is data, everything else is stderr.

use bk_core::event::{Event, Progress};
use bk_core::report::Cause;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Off a terminal one plain line in so long a time.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// Writes a line of data. A reader that has gone away ends the program quietly, as for every filter.
pub fn data(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Says a line to the person.
pub fn say(line: &str) {
    // Nobody listens on stderr: nothing to do about it.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Says a cause with its hint.
pub fn cause(cause: &Cause) {
    let about = if cause.about.is_empty() || cause.what.contains(&format!("`{}`", cause.about)) {
        String::new()
    } else {
        format!("`{}`: ", cause.about)
    };
    say(&format!("error: {about}{}", cause.what));
    if let Some(hint) = &cause.hint {
        say(&format!("hint: {hint}"));
    }
}

/// `612 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// `1,204,331`.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `2 files`.
pub fn count(value: u64, noun: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", number(value))
}

/// `0.1 s`, `71 s`, `1 h 2 min`.
pub fn seconds(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        10_000..600_000 => format!("{} s", milliseconds / 1000),
        600_000..3_600_000 => format!("{} min", milliseconds / 60_000),
        _ => format!(
            "{} h {} min",
            milliseconds / 3_600_000,
            milliseconds / 60_000 % 60
        ),
    }
}

/// `27 MiB/s`.
pub fn rate(total: u64, milliseconds: u64) -> String {
    format!("{}/s", bytes(total * 1000 / milliseconds.max(1)))
}

/// Bars on a terminal, one line each 30 s elsewhere.
pub struct Bars {
    multi: MultiProgress,
    state: Mutex<State>,
    terminal: bool,
}

struct State {
    bars: HashMap<String, ProgressBar>,
    totals: HashMap<String, u64>,
    last_line: Instant,
}

impl Bars {
    /// Draws on stderr.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            multi: MultiProgress::with_draw_target(target),
            state: Mutex::new(State {
                bars: HashMap::new(),
                totals: HashMap::new(),
                last_line: Instant::now(),
            }),
            terminal,
        }
    }

    fn bar(&self, state: &mut State, instance: &str) -> ProgressBar {
        state
            .bars
            .entry(instance.to_owned())
            .or_insert_with(|| {
                let style = ProgressStyle::with_template("  {prefix:10} {spinner} {msg:14} {binary_bytes:>10}  {binary_bytes_per_sec:>12}");
                let bar = self.multi.add(ProgressBar::no_length());
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(instance.to_owned());
                bar
            })
            .clone()
    }

    fn plain_line(state: &mut State) {
        if state.last_line.elapsed() < PLAIN_EVERY {
            return;
        }
        state.last_line = Instant::now();
        let mut parts: Vec<_> = state
            .totals
            .iter()
            .map(|(name, total)| format!("{name} {}", bytes(*total)))
            .collect();
        parts.sort();
        say(&format!("so far: {}", parts.join(", ")));
    }
}

impl Progress for Bars {
    fn event(&self, instance: &str, event: &Event<'_>) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        match event {
            Event::Bytes(n) | Event::Stored(n) => {
                *state.totals.entry(instance.to_owned()).or_default() += n;
                if self.terminal {
                    self.bar(&mut state, instance).inc(*n);
                } else {
                    Self::plain_line(&mut state);
                }
            }
            Event::Phase(phase) if self.terminal => self
                .bar(&mut state, instance)
                .set_message((*phase).to_owned()),
            Event::Done => {
                if let Some(bar) = state.bars.remove(instance) {
                    bar.finish_and_clear();
                }
            }
            Event::Phase(_) | Event::Expect(_) | Event::Warning(_) | Event::Reached(..) => {}
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // Bars of sinks have no end of their own.
        let _ = self.multi.clear();
    }
}
