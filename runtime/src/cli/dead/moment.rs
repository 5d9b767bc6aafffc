//! Times and rates as they are written on the command line.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};

/// A time as milliseconds since the Unix epoch: so long ago, or RFC 3339, or a day in UTC.
pub(super) fn moment(text: &str) -> Result<i64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let ago = i64::try_from(ago.as_millis()).map_err(|_| "that is too long ago".to_owned())?;
        return Ok(Utc::now().timestamp_millis().saturating_sub(ago));
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_millis());
    }
    let day = text.parse::<NaiveDate>().ok().and_then(|day| day.and_hms_opt(0, 0, 0));
    day.map(|day| day.and_utc().timestamp_millis()).ok_or_else(|| {
        "write a duration (\"2h\", \"3days\"), RFC 3339 (2026-01-31T12:00:00Z) or a day (2026-01-31)".into()
    })
}

/// How long between two, from `50/s`, `600/min` or `10/h`.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and a unit of time: 50/s, 600/min, 10/h".to_owned();
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit.trim() {
        "s" | "sec" | "second" => 1.0,
        "m" | "min" | "minute" => 60.0,
        "h" | "hour" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let interval = seconds / number;
    // Between a million a second and one a day.
    if (1e-6..=86_400.0).contains(&interval) { Ok(Duration::from_secs_f64(interval)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_dates_or_rfc_3339() {
        assert_eq!(moment("2026-01-31T12:00:00+01:00"), Ok(1_769_857_200_000));
        assert_eq!(moment("2026-01-31"), Ok(1_769_817_600_000));
        let ago = Utc::now().timestamp_millis() - moment("2h").unwrap();
        assert!((7_200_000..7_260_000).contains(&ago));
        assert!(moment("yesterday").is_err() && moment("").is_err());
    }

    #[test]
    fn rates_become_intervals() {
        assert_eq!(interval("50/s"), Ok(Duration::from_millis(20)));
        assert_eq!(interval("4"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("120/min"), Ok(Duration::from_millis(500)));
        for bad in ["0/s", "-1/s", "x/s", "1/fortnight", "NaN/s", "inf/s", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
