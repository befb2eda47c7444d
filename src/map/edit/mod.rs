//! Changes to the structures of an image, and the order in which they reach the file.
//!
//! A format computes what is to be written and touches no file. The store keeps it, lets later reads see it,
//! and commits it:
//!
//! ```text
//!    repair of a format            reads tables, decides, returns Changes
//!        |  put        ^
//!        v             | read: changed bytes first, then the file
//!    TableStore ───────┘           Changes that are not in the file yet, bounded in bytes
//!        |  commit
//!        v
//!    Ordered: Data │ Count │ Leaf │ Root │ Header      one sync at each │, and one at the end
//!        |
//!        v
//!    BlockTarget
//! ```
//!
//! A structure reaches the disk before the one that refers to it, so that a crash between two ranks leaves a
//! file that is no worse than before. What may be written only after a structure of a higher rank is in force,
//! as a reference count that is lowered, belongs into a second commit.

mod changes;
mod commit;
mod overlay;
mod store;

pub(crate) use changes::{Changes, Rank};
pub(crate) use commit::Ordered;
pub(crate) use overlay::Overlay;
pub(crate) use store::TableStore;
