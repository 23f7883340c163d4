//! Points at which a test can make something go wrong: `fault_point!(Answered)`, perhaps only
//! `fault_point!(CommitSent if was_sent)`.
//!
//! Only in a build with the feature `faults`. In any other, which is what people install, a point is no code
//! at all, and the names of the points and all that acts there are left out.

/// Does here what a test has asked for. May raise an ERROR, end the process, or leave it without what it needs.
#[cfg(feature = "faults")]
macro_rules! fault_point {
    ($point:ident $(if $condition:expr)?) => {
        if true $(&& $condition)? {
            $crate::pg::fault::reach($crate::pg::fault::Point::$point);
        }
    };
}

/// Nothing.
#[cfg(not(feature = "faults"))]
macro_rules! fault_point {
    ($point:ident $(if $condition:expr)?) => {};
}

pub(crate) use fault_point;

#[cfg(all(test, not(feature = "faults")))]
mod tests {
    /// Another module of the name: where there are both, neither can be named.
    mod others {
        pub mod fault {
            pub const IS_THERE: bool = true;
        }
    }

    #[test]
    fn a_build_without_the_feature_has_nothing_of_it() {
        #[allow(unused_imports)] // nothing else of it is named
        use crate::pg::*;
        use others::*;
        const { assert!(fault::IS_THERE) }
        // A point is no code: nothing that it names has to be there.
        fault_point!(NoSuchPoint if no_such_function());
    }
}
