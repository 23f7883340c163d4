//! The value of a setting, where a copy of it would cost too much.

use pgrx::GucSetting;
use std::ffi::{CStr, CString};

/// Whether a setting has this value; one without a value is the empty string.
pub fn is(setting: &GucSetting<Option<CString>>, value: &CStr) -> bool {
    // SAFETY: the server's variable: null or a C string that lives until the setting changes, which cannot
    // happen while it is compared.
    unsafe {
        let own = *setting.as_ptr();
        value == if own.is_null() { c"" } else { CStr::from_ptr(own) }
    }
}
