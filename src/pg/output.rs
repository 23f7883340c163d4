//! Under which settings output functions write.

use super::context::Settings;
use crate::canonical::TEXT_SETTINGS;
use pgrx::pg_sys;
use std::ffi::{CStr, c_int};

/// What the output of some columns depends on besides the styles of dates, intervals and floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputNeeds {
    /// Anything: functions of other people's.
    pub anything: bool,
    /// TimeZone. Plain points in time are not among these: see [`super::plain`].
    pub time_zone: bool,
    /// bytea_output.
    pub bytea: bool,
}

impl OutputNeeds {
    /// What both need together.
    pub fn and(self, other: Self) -> Self {
        Self {
            anything: self.anything || other.anything,
            time_zone: self.time_zone || other.time_zone,
            bytea: self.bytea || other.bytea,
        }
    }

    /// Whether the session writes as values must travel, so that nothing has to be pinned.
    pub fn are_met(self) -> bool {
        // SAFETY: plain reads of GUC variables.
        let styles = unsafe {
            pg_sys::DateStyle == pg_sys::USE_ISO_DATES as i32
                && pg_sys::IntervalStyle == pg_sys::INTSTYLE_POSTGRES as i32
                && pg_sys::extra_float_digits > 0
        };
        styles
            && !self.anything
            && (!self.time_zone || time_zone_is_utc())
            && (!self.bytea || bytea_is_hex())
    }
}

/// Whether the session's time zone is UTC, under either of its usual names.
fn time_zone_is_utc() -> bool {
    // SAFETY: null before it is set, else a zone of the server's cache, whose name lives with it.
    unsafe {
        let zone = pg_sys::session_timezone;
        if zone.is_null() {
            return false;
        }
        let name = CStr::from_ptr(pg_sys::pg_get_timezone_name(zone));
        name == c"UTC" || name == c"Etc/UTC"
    }
}

/// Whether bytes are written as hexadecimal digits.
pub(super) fn bytea_is_hex() -> bool {
    // pgrx has no binding for it; declared in utils/bytea.h, as is the number.
    unsafe extern "C" {
        static bytea_output: c_int;
    }
    const BYTEA_OUTPUT_HEX: c_int = 1;
    // SAFETY: a plain read of a GUC variable.
    unsafe { bytea_output == BYTEA_OUTPUT_HEX }
}

/// Pins [`TEXT_SETTINGS`] while the result lives. Those that are so already are left alone.
pub fn pinned() -> Option<Settings> {
    let is_other = |(name, value): &(&CStr, &CStr)| {
        // SAFETY: a C string, that of a setting which may be missing; the answer is null or a C string that is
        // compared at once.
        unsafe {
            let own = pg_sys::GetConfigOption(name.as_ptr(), true, false);
            own.is_null() || CStr::from_ptr(own) != *value
        }
    };
    let others: Vec<_> = TEXT_SETTINGS.into_iter().filter(is_other).collect();
    (!others.is_empty()).then(|| Settings::set(&others))
}
