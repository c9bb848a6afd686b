// Package finding has the one form in which this program says what is wrong with a file: where,
// which property, what was expected and found, and what to do next. It is the error of a command
// that refuses the file, and an entry in the report of a check.
package finding
