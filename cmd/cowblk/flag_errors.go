package main

import "regexp"

// flagErrors maps errors of Go's packages about option values to texts for a person.
var flagErrors = []struct {
	form *regexp.Regexp
	text string
}{
	{regexp.MustCompile(`strconv\.Parse[A-Za-z]+: parsing "(?s:.*)": value out of range`),
		"the number is too large"},
	{regexp.MustCompile(`strconv\.ParseUint: parsing "(?s:.*)": invalid syntax`),
		"expected a whole number, 0 or more"},
	{regexp.MustCompile(`strconv\.ParseInt: parsing "(?s:.*)": invalid syntax`),
		"expected a whole number"},
	{regexp.MustCompile(`strconv\.ParseFloat: parsing "(?s:.*)": invalid syntax`),
		"expected a number"},
	{regexp.MustCompile(`strconv\.ParseBool: parsing "(?s:.*)": invalid syntax`),
		"expected true or false"},
	{regexp.MustCompile(`time: (invalid duration|missing unit in duration|unknown unit) (?s:.*)$`),
		"expected a time such as 500ms, 10s or 1m30s"},
}

// flagText returns the text of an error about an option value.
func flagText(err error) string {
	text := err.Error()
	for _, e := range flagErrors {
		text = e.form.ReplaceAllLiteralString(text, e.text)
	}
	return text
}
