// Package index maps every block of a disk to its owner, the newest layer that has content for it,
// at a cost that does not depend on the number of layers.
//
// The disk is divided into pages of 4,096 blocks. A directory has one 64-bit entry per page. An
// entry whose blocks all have one owner holds that owner: a fresh clone of a large image costs its
// directory and nothing else. Any other entry points to a page with a number for each block,
// relative to the entry's base owner: of 6 bits where the owners span up to 63 layers, of 8 bits up
// to 255, of 16 bits beyond. Pages lie in anonymous memory outside Go's heap. A run of equal owners
// is found a word at a time. In front of the numbers, a byte for every 16 blocks has the number
// that they share, if they do (groups): most lookups need no more, and a sixteenth of a byte per
// block stays in the CPU's cache where the page does not.
//
// Lookups take no lock and write nothing. Owners only rise: Raise changes a page under one of a set
// of striped locks, with one atomic store per word, and replaces directory entries with one atomic
// store. A lookup that sees the entry change starts over; Lookup says why that suffices.
package index
