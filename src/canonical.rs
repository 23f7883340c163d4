//! The settings under which a value and its text are one thing. Pure.
//!
//! A value travels as the text that its type's output function writes here, and that the input function of
//! the column's type reads there. Whatever can alter what either of them does, or how what was read is
//! converted into another type, is pinned by this list on both sides: while a row is captured, and in every
//! remote session, where it is also asked whether it is so. A test holds the list against all settings that
//! the server has for clients.

use std::ffi::CStr;

/// A setting and its value, as SHOW writes it.
pub type TextSetting = (&'static CStr, &'static CStr);

/// The settings that both sides have while values are written and read as text.
pub const TEXT_SETTINGS: [TextSetting; 13] = [
    (c"datestyle", c"ISO, MDY"),
    (c"intervalstyle", c"postgres"),
    // A point in time that goes into a type without a zone would take that of its writer.
    (c"timezone", c"UTC"),
    (c"extra_float_digits", c"3"),
    (c"bytea_output", c"hex"),
    (c"lc_monetary", c"C"),
    (c"array_nulls", c"on"),
    (c"xmlbinary", c"base64"),
    // Content is what the source may hold; a document is content.
    (c"xmloption", c"content"),
    // Names of tables, types and functions as values.
    (c"quote_all_identifiers", c"off"),
    (c"standard_conforming_strings", c"on"),
    (c"transform_null_equals", c"off"),
    (c"search_path", c"pg_catalog"),
];
