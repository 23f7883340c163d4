//! The value of a setting, where a copy of it would cost too much.

use pgrx::GucSetting;
use std::ffi::{CStr, CString, c_char};

/// Whether a setting has this value; one without a value is the empty string.
pub fn is(setting: &GucSetting<Option<CString>>, value: &CStr) -> bool {
    // SAFETY: the server's variable, which cannot change while it is compared.
    unsafe { value == text(*setting.as_ptr()) }
}

/// What is in a variable of the server's own; one that is not set is the empty string.
///
/// # Safety
/// Null or a C string that lives as long as what is given.
pub(super) unsafe fn text<'a>(variable: *const c_char) -> &'a CStr {
    // SAFETY: by the caller.
    unsafe {
        if variable.is_null() {
            c""
        } else {
            CStr::from_ptr(variable)
        }
    }
}
