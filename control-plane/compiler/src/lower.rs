//! Documents of a scope -> resources of a snapshot; an object that does not compile is quarantined.
