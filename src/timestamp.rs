//! Points in time as PostgreSQL stores them, microseconds since 2000-01-01, and as it writes them with
//! DateStyle ISO. Pure.

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Days from 0000-03-01, where 400 years begin, to 2000-01-01.
const TO_2000: i64 = 730_425;

/// Characters of the longest text that [`write()`] gives.
pub const LONGEST: usize = 26;

/// `2024-02-29 23:59:59.123456` in microseconds since 2000, and what follows.
pub fn read(text: &str) -> Option<(i64, &str)> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| {
        bytes.get(from..to)?.iter().try_fold(0i64, |number, digit| {
            digit
                .is_ascii_digit()
                .then(|| number * 10 + i64::from(digit - b'0'))
        })
    };
    let signs = [(4, b'-'), (7, b'-'), (10, b' '), (13, b':'), (16, b':')];
    if signs.iter().any(|(at, sign)| bytes.get(*at) != Some(sign)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let fits = (1..=12).contains(&month) && (1..=31).contains(&day) && year > 0;
    if !fits || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut end = 19;
    let mut fraction = 0;
    if bytes.get(end) == Some(&b'.') {
        let digits = bytes[end + 1..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        if !(1..=6).contains(&digits) {
            return None;
        }
        fraction = number(end + 1, end + 1 + digits)? * 10i64.pow(6 - digits as u32);
        end += 1 + digits;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds * SECOND + fraction, text.get(end..)?))
}

/// Days from 2000-01-01 in the Gregorian calendar, as PostgreSQL reckons at all times.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    before + (month * 153 + 2) / 5 + day - 1 - TO_2000
}

/// `+02`, `-03:30`, `+00:19:32` in seconds east of Greenwich.
pub fn offset(text: &str) -> Option<i64> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let mut seconds = 0;
    let mut unit = 3_600;
    for part in text.get(1..)?.split(':') {
        let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        if !two || unit == 0 {
            return None;
        }
        seconds += part.parse::<i64>().ok()? * unit;
        unit /= 60;
    }
    Some(sign * seconds)
}

/// A timestamp as text; its length. `None` for what is not within the years 1 to 9999.
pub fn write(time: i64, to: &mut [u8; LONGEST]) -> Option<usize> {
    let (days, mut rest) = (time.div_euclid(DAY), time.rem_euclid(DAY));
    let (year, month, day) = date(days);
    if !(1..=9999).contains(&year) {
        return None;
    }
    let fraction = rest % SECOND;
    rest /= SECOND;
    *to = *b"0000-00-00 00:00:00.000000";
    let fields = [
        (0..4, year),
        (5..7, month),
        (8..10, day),
        (11..13, rest / 3_600),
        (14..16, rest / 60 % 60),
        (17..19, rest % 60),
        (20..26, fraction),
    ];
    for (place, mut number) in fields {
        for digit in to[place].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }
    if fraction == 0 {
        return Some(19);
    }
    let zeros = to.iter().rev().take_while(|digit| **digit == b'0').count();
    Some(LONGEST - zeros)
}

/// Year, month and day of so many days after 2000-01-01; the inverse of [`days`].
fn date(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let (era, day) = (
        (days + TO_2000).div_euclid(ERA),
        (days + TO_2000).rem_euclid(ERA),
    );
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (day * 5 + 2) / 153;
    let day = day - (month * 153 + 2) / 5 + 1;
    let year = era * 400 + year;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = days(1, 1, 1) - 1;
        for year in 1..=2_500 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            for month in 1..=12 {
                let length = match month {
                    2 if leap => 29,
                    2 => 28,
                    4 | 6 | 9 | 11 => 30,
                    _ => 31,
                };
                for day in 1..=length {
                    last += 1;
                    assert_eq!(date(last), (year, month, day));
                    assert_eq!(days(year, month, day), last, "{year}-{month}-{day}");
                }
            }
        }
        assert_eq!(days(2000, 1, 1), 0);
    }

    fn text(time: i64) -> Option<String> {
        let mut to = [0; LONGEST];
        let length = write(time, &mut to)?;
        Some(to[..length].iter().map(|byte| *byte as char).collect())
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        let first = days(1, 1, 1) * DAY;
        let last = days(10_000, 1, 1) * DAY - 1;
        // An odd step comes by all times of the day.
        for time in (first..=last)
            .step_by(10_800_000_123_457)
            .chain([first, last, -1, 0, 1])
        {
            let written = text(time).expect("within the years");
            assert_eq!(read(&written), Some((time, "")), "{written}");
        }
        assert_eq!((text(first - 1), text(last + 1)), (None, None));
        assert_eq!((text(i64::MIN), text(i64::MAX)), (None, None));
    }

    #[test]
    fn fractions_end_where_zeros_begin() {
        for (time, expected) in [
            (0, "2000-01-01 00:00:00"),
            (1, "2000-01-01 00:00:00.000001"),
            (-500_000, "1999-12-31 23:59:59.5"),
            (762_525_015_250_000, "2024-02-29 12:30:15.25"),
            (10 * SECOND, "2000-01-01 00:00:10"),
            (10 * SECOND + 100, "2000-01-01 00:00:10.0001"),
        ] {
            assert_eq!(text(time).as_deref(), Some(expected));
        }
    }
}
