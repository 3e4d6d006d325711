//! `keep = { … }`: the rules as they are written, and what they mean in each layout.

use crate::layout::{Layout, Tier};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// `keep = { … }`: how many of each period, as `daily = 7`, or for how long, as `daily = "30d"`. A rule that is left out keeps nothing; all left
/// out keep everything. An archive that any rule keeps is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// The newest so many.
    pub last: Limit,
    /// All that were made within so long before the newest.
    pub within: Option<Age>,
    /// One of each of so many hours.
    pub hourly: Limit,
    /// One of each of so many days; in the layout `tiers` all of each.
    pub daily: Limit,
    /// One of each of so many ISO weeks.
    pub weekly: Limit,
    /// One of each of so many months.
    pub monthly: Limit,
    /// One of each of so many years.
    pub yearly: Limit,
    /// Whole archives that are never let go, the newest; at least 1.
    pub floor: u32,
}

impl Keep {
    /// The newest so many and nothing else.
    pub fn last(count: u32) -> Self {
        Self {
            last: count.into(),
            ..Self::default()
        }
    }

    /// Whether it lets nothing go at all.
    pub fn is_unlimited(&self) -> bool {
        self.rules(Layout::Flat).is_empty()
    }

    /// Whether archives are kept for this tier.
    pub fn keeps(&self, tier: Tier) -> bool {
        let mut rules = self.rules(Layout::Tiers).into_iter();
        self.is_unlimited() || rules.any(|rule| rule.tier == Some(tier))
    }

    /// What keeps anything, in this layout. In `tiers` a rule asks for what lies in its tier's folders: the first of a week, a month, a year.
    pub fn rules(&self, layout: Layout) -> Vec<Rule> {
        let within = self.within.map_or(Limit::Count(0), Limit::Age);
        let in_tiers = layout == Layout::Tiers;
        let rule = |period, limit, tier, in_tier| Rule {
            period,
            limit,
            pick: if in_tiers { in_tier } else { Pick::Newest },
            tier: in_tiers.then_some(tier),
        };
        let all = [
            rule(Period::Each, self.last, Tier::Daily, Pick::Newest),
            rule(Period::Each, within, Tier::Daily, Pick::Newest),
            rule(Period::Hour, self.hourly, Tier::Daily, Pick::Newest),
            rule(Period::Day, self.daily, Tier::Daily, Pick::Every),
            rule(Period::Week, self.weekly, Tier::Weekly, Pick::First),
            rule(Period::Month, self.monthly, Tier::Monthly, Pick::First),
            rule(Period::Year, self.yearly, Tier::Yearly, Pick::First),
        ];
        let keeps = |rule: &Rule| rule.limit != Limit::Count(0);
        all.into_iter().filter(keeps).collect()
    }
}

/// One rule: which archive of each period, and how far back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it takes one of.
    pub period: Period,
    /// How far back.
    pub limit: Limit,
    /// Which one.
    pub pick: Pick,
    /// Only those that lie in this tier's folders, and those in no tier's.
    pub tier: Option<Tier>,
}

impl Rule {
    /// Its word in settings.
    pub fn word(&self) -> &'static str {
        match (self.period, self.limit) {
            (Period::Each, Limit::Count(_)) => "last",
            (Period::Each, Limit::Age(_)) => "within",
            (Period::Hour, _) => "hourly",
            (Period::Day, _) => "daily",
            (Period::Week, _) => "weekly",
            (Period::Month, _) => "monthly",
            (Period::Year, _) => "yearly",
        }
    }
}

/// Which archive of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The newest.
    Newest,
    /// The first that was made in it.
    First,
    /// All.
    Every,
}

/// What a rule takes one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Every archive is its own.
    Each,
    /// An hour of the day.
    Hour,
    /// A day.
    Day,
    /// An ISO week.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

/// How far back a rule reaches: `7` periods that have an archive, or `"30d"` before the newest archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many periods.
    Count(u32),
    /// So long.
    Age(Age),
}

impl Default for Limit {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl From<u32> for Limit {
    fn from(count: u32) -> Self {
        Self::Count(count)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Age(age) => write!(f, "{age}"),
        }
    }
}

/// A length of calendar time: `36h`, `30d`, `12w`, `6mo`, `7y`, and sums such as `1y6mo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age {
    months: u16,
    days: u32,
    hours: u32,
}

impl Age {
    /// So many days.
    pub fn days(days: u32) -> Self {
        Self {
            days,
            ..Self::default()
        }
    }

    /// The instant so long before another, by the calendar of this zone.
    pub fn before(self, at: Timestamp, zone: &TimeZone) -> Timestamp {
        let span = Span::new()
            .months(self.months)
            .days(self.days)
            .hours(self.hours);
        let earlier = at.to_zoned(zone.clone()).checked_sub(span);
        earlier.map_or(Timestamp::MIN, |earlier| earlier.timestamp())
    }

    /// As days, rounded up.
    pub fn as_days(self) -> u32 {
        u32::from(self.months) * 31 + self.days + self.hours.div_ceil(24)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (u32::from(self.months / 12), "y"),
            (u32::from(self.months % 12), "mo"),
            (self.days, "d"),
            (self.hours, "h"),
        ];
        for (count, unit) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{count}{unit}")?;
        }
        Ok(())
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no age: write \"36h\", \"30d\", \"12w\", \"6mo\" (months) or \"7y\""
            )
        };
        let span: Span = text.parse().map_err(|_| wrong())?;
        // Many write `6m` for months; as minutes it would let nearly everything go.
        let small = span.get_minutes() != 0
            || span.get_seconds() != 0
            || span.get_milliseconds() != 0
            || span.get_microseconds() != 0
            || span.get_nanoseconds() != 0;
        if small || !span.is_positive() {
            return Err(wrong());
        }
        let months = i32::from(span.get_years()) * 12 + span.get_months();
        let days = i64::from(span.get_weeks()) * 7 + i64::from(span.get_days());
        Ok(Self {
            months: months.try_into().map_err(|_| wrong())?,
            days: days.try_into().map_err(|_| wrong())?,
            hours: span.get_hours().try_into().map_err(|_| wrong())?,
        })
    }
}

impl Serialize for Age {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => to.serialize_u32(*count),
            Self::Age(age) => age.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct CountOrAge;

        impl Visitor<'_> for CountOrAge {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a number of periods such as 7, \"unlimited\", or an age such as \"30d\"",
                )
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Limit, E> {
                let wrong = || E::custom(format!("{count} is no number of archives to keep"));
                Ok(Limit::Count(count.try_into().map_err(|_| wrong())?))
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Limit, E> {
                Ok(Limit::Count(count.try_into().unwrap_or(u32::MAX)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Limit, E> {
                // What comes from the environment is text.
                if let Ok(count) = text.parse() {
                    return Ok(Limit::Count(count));
                }
                if text == "unlimited" {
                    return Ok(Limit::Count(u32::MAX));
                }
                Ok(Limit::Age(text.parse().map_err(E::custom)?))
            }
        }
        from.deserialize_any(CountOrAge)
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "so many periods that have an archive, or an age before the newest archive: \"36h\", \"30d\", \"12w\", \"6mo\", \"7y\"",
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }],
        })
    }
}

impl JsonSchema for Age {
    fn schema_name() -> Cow<'static, str> {
        "Age".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "\"36h\", \"30d\", \"12w\", \"6mo\", \"7y\"",
            "type": "string",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_and_said_as_they_are_written() {
        for (text, said) in [
            ("30d", "30d"),
            ("12w", "84d"),
            ("6mo", "6mo"),
            ("1y6mo", "1y6mo"),
            ("36h", "36h"),
            ("2 years", "2y"),
        ] {
            assert_eq!(text.parse::<Age>().unwrap().to_string(), said, "{text}");
        }
        for wrong in ["6m", "30", "", "-3d", "0d", "5s", "monthly", "1h30m"] {
            let error = wrong.parse::<Age>().unwrap_err();
            assert!(error.contains("6mo"), "{wrong}: {error}");
        }
    }

    #[test]
    fn months_are_the_calendars() {
        let at: Timestamp = "2026-03-31T10:00:00Z".parse().unwrap();
        let before = "1mo".parse::<Age>().unwrap().before(at, &TimeZone::UTC);
        assert_eq!(before.to_string(), "2026-02-28T10:00:00Z");
    }
}
