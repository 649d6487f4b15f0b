//! Journals that are cut, damaged, copied and filled; reporters against a ledger of a few lines.

mod crash;
mod folder;
mod journal;
mod ledger;
mod reporter;
