//! Tags of heavyweight locks, laid out as the server's macros do it.

use super::Oid;
use pgrx::pg_sys;

/// The tag of an object, laid out as SET_LOCKTAG_OBJECT does it. A number other than 0 is no object of the
/// catalogs.
pub(super) fn object_tag(database: Oid, class: Oid, object: Oid, number: u16) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: database.to_u32(),
        locktag_field2: class.to_u32(),
        locktag_field3: object.to_u32(),
        locktag_field4: number,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}
