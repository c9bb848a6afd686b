// Package reader holds cowreader.py, a reader and checker of stores that was written from cow/FORMAT.md alone, and a test
// that compares it with "cowblk export" and "cowblk check" on every kind of store. Where the two differ, the text, the
// program or the reader is wrong. It shares no code with cowblk, and needs nothing but Python 3.
package reader
