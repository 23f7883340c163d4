//! Points in time as PostgreSQL stores them, microseconds since 2000-01-01, and as it writes them with
//! DateStyle ISO. Pure.

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Days from 0000-03-01, where 400 years begin, to 2000-01-01.
const TO_2000: i64 = 730_425;

/// Characters of the longest text that [`write()`] gives.
pub const LONGEST: usize = 26;

/// Characters up to the seconds.
const TO_SECONDS: usize = 19;

/// `2024-02-29 23:59:59.123456` in microseconds since 2000, and what follows.
pub fn read(text: &str) -> Option<(i64, &str)> {
    let head: &[u8; TO_SECONDS] = text.as_bytes().first_chunk()?;
    let two = |at: usize| {
        let tens = digit(head[at])?;
        let ones = digit(head[at + 1])?;
        Some(tens * 10 + ones)
    };
    let [
        ..,
        b'-',
        _,
        _,
        b'-',
        _,
        _,
        b' ',
        _,
        _,
        b':',
        _,
        _,
        b':',
        _,
        _,
    ] = head
    else {
        return None;
    };
    let year = two(0)? * 100 + two(2)?;
    let month = two(5)?;
    let day = two(8)?;
    let hour = two(11)?;
    let minute = two(14)?;
    let second = two(17)?;
    let fits = (1..=12).contains(&month) && (1..=31).contains(&day) && year > 0;
    if !fits || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(TO_SECONDS..)?;
    let mut fraction = 0;
    if let Some(digits) = rest.strip_prefix('.') {
        let length = digits.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=6).contains(&length) {
            return None;
        }
        let (digits, after) = digits.split_at(length);
        fraction = digits.parse::<i64>().ok()? * 10i64.pow(6 - length as u32);
        rest = after;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds * SECOND + fraction, rest))
}

fn digit(character: u8) -> Option<i64> {
    let digit = character.wrapping_sub(b'0');
    (digit < 10).then_some(i64::from(digit))
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
    let days = time.div_euclid(DAY);
    let rest = time.rem_euclid(DAY);
    let (year, month, day) = date(days);
    if !(1..=9999).contains(&year) {
        return None;
    }
    let fraction = (rest % SECOND) as u32;
    let second = (rest / SECOND) as u32;
    *to = *b"0000-00-00 00:00:00.000000";
    let year = year as u32;
    let pairs = [
        (0, year / 100),
        (2, year % 100),
        (5, month as u32),
        (8, day as u32),
        (11, second / 3_600),
        (14, second / 60 % 60),
        (17, second % 60),
        (20, fraction / 10_000),
        (22, fraction / 100 % 100),
        (24, fraction % 100),
    ];
    for (at, number) in pairs {
        to[at] = b'0' + (number / 10) as u8;
        to[at + 1] = b'0' + (number % 10) as u8;
    }
    if fraction == 0 {
        return Some(TO_SECONDS);
    }
    let zeros = to.iter().rev().take_while(|digit| **digit == b'0').count();
    Some(LONGEST - zeros)
}

/// Year, month and day of so many days after 2000-01-01; the inverse of [`days`].
fn date(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let era = (days + TO_2000).div_euclid(ERA);
    let day = (days + TO_2000).rem_euclid(ERA);
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
