//! Dates and times as text, from the numbers that databases send. No range of a calendar library: Postgres goes to the
//! year 294276.

/// Microseconds in a day.
pub(super) const DAY: i64 = 86_400_000_000;

/// A day of the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    pub(super) month: u32,
    pub(super) day: u32,
}

/// The date so many days after 1970-01-01.
pub(super) fn civil(days: i64) -> Civil {
    // Eras of 400 years that begin on 1 March of year 0, so that a leap day is the last day of its year.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil { year, month: u32::try_from(month).unwrap_or(1), day: u32::try_from(day).unwrap_or(1) }
}

impl Civil {
    /// True for the years that `YYYY` can say.
    pub(super) fn is_plain(self) -> bool {
        (1..=9999).contains(&self.year)
    }

    /// `YYYY-MM-DD`; years before 1 as Postgres writes them, to be followed by [`Civil::era`].
    pub(super) fn text(self) -> String {
        let year = if self.year < 1 { 1 - self.year } else { self.year };
        format!("{year:04}-{:02}-{:02}", self.month, self.day)
    }

    /// ` BC`, or nothing.
    pub(super) fn era(self) -> &'static str {
        if self.year < 1 { " BC" } else { "" }
    }
}

/// `HH:MM:SS[.ffffff]`, without trailing zeros in the fraction. Hours may exceed 23.
pub(super) fn clock(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { text } else { format!("{text}.{}", format!("{fraction:06}").trim_end_matches('0')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let text = |days| format!("{}{}", civil(days).text(), civil(days).era());
        assert_eq!(text(0), "1970-01-01");
        assert_eq!(text(11_016), "2000-02-29");
        assert_eq!(text(-1), "1969-12-31");
        assert_eq!(text(2_932_896), "9999-12-31");
        assert_eq!(text(2_932_897), "10000-01-01");
        assert_eq!(text(-719_528), "0001-01-01 BC");
        assert_eq!(text(-719_162), "0001-01-01");
    }

    #[test]
    fn every_day_agrees_with_chrono() {
        let start = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).expect("a date");
        for days in (-719_162..2_932_896).step_by(97) {
            let expected = start + chrono::Duration::days(days);
            assert_eq!(civil(days).text(), expected.format("%Y-%m-%d").to_string());
        }
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(0), "00:00:00");
        assert_eq!(clock(DAY), "24:00:00");
        assert_eq!(clock(3_661_120_000), "01:01:01.12");
        assert_eq!(clock(1), "00:00:00.000001");
    }
}
