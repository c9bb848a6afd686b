// Package dmtable parses the device-mapper table line of dm-cow, for "cowblk create --table". It
// opens no file: the store checks what the line names.
package dmtable
