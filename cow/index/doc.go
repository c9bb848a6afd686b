// Package index maps every block of a disk to its owner, the newest layer that
// has content for it, at a cost that does not depend on how many layers there
// are.
//
// The disk is cut into pages of 4,096 blocks. A directory has one 64-bit entry
// per page. An entry whose blocks all have one owner holds just that owner: a
// fresh clone of a large image costs its directory and nothing else. Any other
// entry points to a page with a number for each block, relative to the entry's base
// owner: of 6 bits where the owners span up to 63 layers, of 8 up to 255, of 16 beyond
// that. Pages lie in anonymous memory outside Go's heap. A run of equal owners is found
// a word at a time. In front of the numbers, a byte for every 16 blocks has the number
// that they share, if they do: for most lookups that is all, and a sixteenth of a byte
// a block stays in the processor's cache where the page does not (group.go).
//
// Lookups take no lock and write nothing. Owners only ever rise: Raise changes
// a page under one of a set of striped locks, with one atomic store per word,
// and replaces directory entries with one atomic store. A lookup that sees the
// entry change under it starts over; see Lookup for why that suffices.
package index
