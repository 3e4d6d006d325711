//! Retention as a picture: a line for each month, a letter for each day that has an archive.

use bk_core::retention::{Decision, Verdict};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// Letters, the strongest first, and the words of the rules that they stand for.
const LETTERS: [(char, &str); 13] = [
    ('P', "pinned"),
    ('Y', "yearly"),
    ('M', "monthly"),
    ('W', "weekly"),
    ('D', "daily"),
    ('H', "hourly"),
    ('N', "within"),
    ('L', "last"),
    ('F', "floor"),
    ('I', "partial"),
    ('A', "all"),
    ('B', "damaged"),
    ('Z', "future"),
];
const GOES_NOW: char = 'x';
const NOTHING: char = '.';

/// The picture, line by line. A small letter goes with the next day's run.
pub fn draw(verdict: &Verdict, tomorrow: &[String], zone: &TimeZone) -> Vec<String> {
    let mut days: BTreeMap<Date, char> = BTreeMap::new();
    let mut used = Vec::new();
    for decision in &verdict.decisions {
        let day = zone.to_datetime(decision.created).date();
        let letter = letter(decision, tomorrow);
        used.push(letter.to_ascii_uppercase());
        days.entry(day)
            .and_modify(|there| *there = stronger(*there, letter))
            .or_insert(letter);
    }
    if days.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![
        format!("{:9}{:>10}{:>10}{:>10}", "", 1, 2, 3),
        format!("{:9}1234567890123456789012345678901", ""),
    ];
    let mut months: BTreeMap<Date, String> = BTreeMap::new();
    for (day, letter) in &days {
        let row = months.entry(day.first_of_month()).or_insert_with(|| {
            let days = usize::try_from(day.days_in_month()).unwrap_or(31);
            NOTHING.to_string().repeat(days)
        });
        let at = usize::try_from(day.day()).unwrap_or(1) - 1;
        row.replace_range(at..=at, &letter.to_string());
    }
    lines.extend(
        months
            .iter()
            .rev()
            .map(|(month, row)| format!("{}  {row}", month.strftime("%Y-%m"))),
    );
    lines.push(legend(&used));
    lines
}

fn letter(decision: &Decision, tomorrow: &[String]) -> char {
    let keeps = |word: &str| decision.rules.contains(&word);
    let found = LETTERS.iter().find(|(_, word)| keeps(word));
    let letter = found.map_or(GOES_NOW, |(letter, _)| *letter);
    if decision.keep && tomorrow.contains(&decision.id) {
        letter.to_ascii_lowercase()
    } else {
        letter
    }
}

/// Of two archives of a day, what stays longer is shown.
fn stronger(one: char, other: char) -> char {
    let rank = |letter: char| {
        let at = LETTERS
            .iter()
            .position(|(l, _)| *l == letter.to_ascii_uppercase());
        (
            letter == GOES_NOW,
            letter.is_ascii_lowercase(),
            at.unwrap_or(LETTERS.len()),
        )
    };
    if rank(other) < rank(one) { other } else { one }
}

fn legend(used: &[char]) -> String {
    let mut words: Vec<String> = LETTERS
        .iter()
        .filter(|(letter, _)| used.contains(letter))
        .map(|(letter, word)| format!("{letter} {word}"))
        .collect();
    words.push(format!(
        "small: goes with the next day's run · {GOES_NOW} goes now"
    ));
    words.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_core::layout::Layout;
    use bk_core::retention::{Keep, Known, Measure, Policy, decide, tomorrow};
    use jiff::Timestamp;
    use std::collections::BTreeSet;

    #[test]
    fn each_day_shows_the_rule_that_keeps_it_longest_and_what_goes_next() {
        let day = |day: i8, hour: i8| -> Timestamp {
            let at = jiff::civil::date(2026, 8, day).at(hour, 0, 0, 0);
            at.in_tz("UTC").unwrap().timestamp()
        };
        let known = |at: Timestamp| Known {
            id: at.to_string(),
            created: at,
            complete: true,
            damaged: false,
            pinned: at == day(2, 3),
            placed: BTreeSet::new(),
            instances: Vec::new(),
        };
        let all: Vec<Known> = (1..=12).map(|n| known(day(n, 3))).collect();
        let keep = Keep {
            daily: 3.into(),
            weekly: 2.into(),
            ..Keep::default()
        };
        let zone = TimeZone::UTC;
        let policy = Policy {
            keep: &keep,
            layout: Layout::Flat,
            zone: &zone,
        };
        let accepted = Measure::from(BTreeSet::from([all[11].id.clone()]));
        let now = day(12, 4);
        let verdict = decide(&all, &policy, now, &accepted);
        let next = tomorrow(&all, &policy, &verdict, now);
        let drawn = draw(&verdict, &next, &zone);
        assert_eq!(drawn[2], "2026-08  xPxxxxxxWdDW...................");
        assert!(
            drawn[3].contains("W weekly") && !drawn[3].contains("M monthly"),
            "{}",
            drawn[3]
        );
    }
}
