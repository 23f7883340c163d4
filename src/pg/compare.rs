//! Values by the operators of their types: their order, and the hash of a key.

use super::Oid;
use super::slot::{Attribute, Slot};
use super::text;
use super::xact;
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use std::cmp::Ordering;

/// A type whose values have an order.
#[derive(Clone, Copy, Debug)]
pub struct Comparable {
    type_oid: Oid,
}

impl Comparable {
    /// The default btree order of a type.
    ///
    /// # Errors
    /// 42883 when it has none; 25P01 outside of a transaction.
    pub fn new(type_oid: Oid) -> Result<Self> {
        xact::require()?;
        // SAFETY: entries of the type cache live as long as the backend.
        let has_order = unsafe {
            let flags = pg_sys::TYPECACHE_CMP_PROC_FINFO as i32;
            (*pg_sys::lookup_type_cache(type_oid, flags))
                .cmp_proc_finfo
                .fn_oid
                != pg_sys::InvalidOid
        };
        if has_order {
            Ok(Self { type_oid })
        } else {
            Err(no_function(type_oid, "order"))
        }
    }

    /// Reads a value, which the type's input function refuses by raising if it is none of the type.
    ///
    /// # Errors
    /// 22021 for text that the database cannot hold; 25P01 outside of a transaction.
    pub fn check(&self, value: &str) -> Result<()> {
        xact::require()?;
        let value = text::to_server(value)?;
        // SAFETY: inside a transaction; the type is there, or the look-up raises; its input function takes C
        // strings.
        unsafe {
            let mut function = pg_sys::InvalidOid;
            let mut parameter = pg_sys::InvalidOid;
            pg_sys::getTypeInputInfo(self.type_oid, &mut function, &mut parameter);
            pg_sys::OidInputFunctionCall(function, value.as_ptr().cast_mut(), parameter, -1);
        }
        Ok(())
    }

    /// Compares two values given as text, NULL being the smallest. Under the collation "C" where the
    /// type has collations, so that every database comes to the same. Runs the type's functions, which may
    /// raise.
    ///
    /// # Errors
    /// 22021 for text that the database cannot hold; 42883 when the order has been dropped; 25P01 outside of a
    /// transaction.
    pub fn compare(&self, one: Option<&str>, other: Option<&str>) -> Result<Ordering> {
        let (one, other) = match (one, other) {
            (Some(one), Some(other)) if one != other => (one, other),
            (one, other) => return Ok(one.is_some().cmp(&other.is_some())),
        };
        let one = text::to_server(one)?;
        let other = text::to_server(other)?;
        xact::require()?;
        // SAFETY: the type is there, or the look-ups raise; its input function takes C strings, its
        // comparison, which is there too, two of its values.
        let order = unsafe {
            let flags = pg_sys::TYPECACHE_CMP_PROC_FINFO as i32;
            let entry = pg_sys::lookup_type_cache(self.type_oid, flags);
            if (*entry).cmp_proc_finfo.fn_oid == pg_sys::InvalidOid {
                return Err(no_function(self.type_oid, "order"));
            }
            let collation = match (*entry).typcollation {
                pg_sys::InvalidOid => pg_sys::InvalidOid,
                _ => pg_sys::C_COLLATION_OID,
            };
            let mut function = pg_sys::InvalidOid;
            let mut parameter = pg_sys::InvalidOid;
            pg_sys::getTypeInputInfo(self.type_oid, &mut function, &mut parameter);
            let value = |text: &std::ffi::CStr| {
                pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), parameter, -1)
            };
            let one = value(&one);
            let other = value(&other);
            pg_sys::FunctionCall2Coll(&mut (*entry).cmp_proc_finfo, collation, one, other)
        };
        Ok((order.value() as i32).cmp(&0))
    }
}

/// Hashes keys as `hash_record_extended(ROW(...), 0)` does in SQL, so that keys that are equal have the
/// same hash however they are written.
#[derive(Debug)]
pub struct KeyHash {
    columns: Vec<Attribute>,
}

impl KeyHash {
    /// For a table's key columns.
    ///
    /// # Errors
    /// 42883 for a type that cannot be hashed; 25P01 outside of a transaction.
    pub fn new(columns: &[Attribute]) -> Result<Self> {
        xact::require()?;
        for column in columns {
            // SAFETY: as for Comparable.
            let function = unsafe {
                (*hash_entry(column.type_oid))
                    .hash_extended_proc_finfo
                    .fn_oid
            };
            if function == pg_sys::InvalidOid {
                return Err(no_function(column.type_oid, "hash function"));
            }
        }
        Ok(Self {
            columns: columns.to_vec(),
        })
    }

    /// The hash of a row's key.
    ///
    /// # Errors
    /// XX000 for a row of another table; 42883 when the hash function has been dropped.
    pub fn of(&self, row: Slot<'_>) -> Result<i64> {
        xact::require()?;
        let mut hash = RecordHash::default();
        for column in &self.columns {
            // SAFETY: the value is of the column's type.
            unsafe { hash.add(column.type_oid, row.datum(column)?)? };
        }
        Ok(hash.value())
    }
}

/// The hash of a record's values, as `hash_record_extended(record, 0)` computes it.
#[derive(Default)]
pub(super) struct RecordHash(u64);

impl RecordHash {
    /// Adds the next value; `None` is NULL.
    ///
    /// # Errors
    /// 42883 when the type has no hash function.
    ///
    /// # Safety
    /// Inside a transaction; the value is of the type.
    pub unsafe fn add(&mut self, type_oid: Oid, value: Option<pg_sys::Datum>) -> Result<()> {
        let element = match value {
            None => 0,
            // SAFETY: by the caller; the function takes values of the type.
            Some(value) => unsafe {
                let entry = hash_entry(type_oid);
                let seed = pg_sys::Datum::from(0u64);
                let function = &mut (*entry).hash_extended_proc_finfo;
                if function.fn_oid == pg_sys::InvalidOid {
                    return Err(no_function(type_oid, "hash function"));
                }
                let collation = (*entry).typcollation;
                pg_sys::FunctionCall2Coll(function, collation, value, seed).value() as u64
            },
        };
        self.0 = (self.0 << 5).wrapping_sub(self.0).wrapping_add(element);
        Ok(())
    }

    pub fn value(self) -> i64 {
        self.0 as i64
    }
}

/// # Safety
/// The type must exist.
unsafe fn hash_entry(type_oid: Oid) -> *mut pg_sys::TypeCacheEntry {
    // SAFETY: entries of the type cache live as long as the backend.
    unsafe {
        pg_sys::lookup_type_cache(type_oid, pg_sys::TYPECACHE_HASH_EXTENDED_PROC_FINFO as i32)
    }
}

fn no_function(type_oid: Oid, what: &str) -> Error {
    // SAFETY: a look-up; the name is palloc'd.
    let name = unsafe { text::to_string(pg_sys::format_type_be(type_oid)) };
    let name = name.ok().flatten().unwrap_or_default();
    Error::local(SqlState::UNDEFINED_FUNCTION, format!("type {name} has no {what}"))
        .with_hint("\"on_conflict\": \"newest\" needs a version column that can be ordered and key columns that can be hashed.")
}
