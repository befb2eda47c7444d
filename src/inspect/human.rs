//! Sizes and times as QEMU writes them for people.

/// A size with three significant digits and a binary unit, as QEMU's `size_to_str` has it: the unit
/// changes at 1,000, so that 1,000 bytes are `0.977 KiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut scaled = bytes as f64;
    let mut unit = "";
    for next in UNITS.into_iter().skip(1) {
        if scaled < 1000.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    format!("{} {unit}B", three_digits(scaled))
}

/// A number below 1,024 in the form of C's `%.3g`.
fn three_digits(number: f64) -> String {
    if number >= 999.5 {
        return "1e+03".to_owned();
    }
    let decimals = match number {
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        n if n >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A time in seconds since 1970 as `YYYY-MM-DD HH:MM:SS`, UTC.
pub(super) fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from the 1st of March of the year 0, so that a leap day ends its year and
    // whole eras of 400 years are alike.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + carry;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// A duration in nanoseconds as `HHHH:MM:SS.mmm`.
pub(super) fn clock(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds / 1_000_000;
    let seconds = milliseconds / 1000;
    format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        milliseconds % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_as_qemu_rounds_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (9728, "9.5 KiB"),
            (12_800, "12.5 KiB"),
            (101_888, "99.5 KiB"),
            (1_023_488, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_046_528, "0.998 MiB"),
            (1_048_064, "1 MiB"),
            (1_234_944, "1.18 MiB"),
            (1_351_680, "1.29 MiB"),
            (123_456_789, "118 MiB"),
            (1_072_693_248, "0.999 GiB"),
            (107_374_181_888, "100 GiB"),
            (1_099_511_627_264, "1 TiB"),
            (1 << 63, "8 EiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn dates_of_leap_years_and_centuries() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_244_244, "2026-11-21 06:57:24"),
            (u64::from(u32::MAX), "2106-02-07 06:28:15"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(date(seconds), text);
        }
        assert_eq!(clock(18_061_007_000_999), "0005:01:01.007");
        assert_eq!(clock(44_442_000 * 1_000_000_000), "12345:00:00.000");
    }
}
