//! Real local clusters for tests.
