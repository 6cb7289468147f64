//! The C++ programs of `benches/peers/`, which measure other allocators: they are compiled where they
//! run, since what they call is installed there and not here.

mod compiler;
mod folder;
mod places;

pub use compiler::{compile, compile_nothing};
pub use folder::Folder;
pub use places::{Package, Places};
