// Package reader holds cowreader.py, a reader and checker of stores that was written from
// cow/FORMAT.md alone. A test compares it with "cowblk export" and "cowblk check" on every kind of
// store. If the two differ, the specification, the program or the reader is wrong. The reader
// shares no code with cowblk and needs only Python 3.
package reader
