package finding

import (
	"errors"
	"fmt"
	"strings"

	"cowblk/cow/shell"
)

// ErrRefused: what is on disk is damaged or is not what was recorded.
var ErrRefused = errors.New("refused")

// Finding is one thing that is wrong with a file. In JSON it is a problem in the report of a check,
// which sets Object, Status and Leftover.
type Finding struct {
	Object   string `json:"object"` // "manifest", "layer UUID", "base", ...
	File     string `json:"file"`   // path; empty in an error: the caller knows it
	What     string `json:"what"`   // the property that was checked
	Expected string `json:"expected"`
	Found    string `json:"found"`
	Status   Status `json:"status"`
	Remedy   string `json:"remedy,omitempty"` // what a repair did or would do; empty: nothing
	Advice   string `json:"advice,omitempty"` // what the user can do
	// Leftover: nothing is damaged; something can be removed.
	Leftover bool `json:"leftover,omitempty"`

	Err   error `json:"-"` // sentinel of the package that found it; nil: ErrRefused
	Cause error `json:"-"` // the error behind Found, for callers; may be nil
}

// Status says what becomes of a finding of a check.
type Status string

// States of a finding.
const (
	Repairable Status = "repairable" // a repair would fix it
	Repaired   Status = "repaired"
	Left       Status = "left" // a person must decide; see Advice
)

// New returns a finding. expected and found are printed as by fmt.Sprint; empty: nothing is said.
func New(sentinel error, file, what string, expected, found any, advice string) *Finding {
	return &Finding{
		File: file, What: what, Expected: fmt.Sprint(expected), Found: fmt.Sprint(found),
		Advice: advice, Err: sentinel,
	}
}

// Error returns the finding in one sentence. The advice follows: after a semicolon, or on a line of
// its own in a refusal, which is the last word of a command.
func (f *Finding) Error() string {
	var b strings.Builder
	beforeAdvice := "\n"
	if f.File != "" {
		b.WriteString(shell.Text(f.File) + ": ")
	}
	if f.Err != nil {
		b.WriteString(f.Err.Error() + ": ")
		beforeAdvice = "; "
	}
	b.WriteString(f.What)
	if f.Expected != "" {
		b.WriteString(": expected " + f.Expected)
	}
	if f.Found != "" {
		b.WriteString(", found " + f.Found)
	}
	if f.Advice != "" {
		b.WriteString(beforeAdvice + f.Advice)
	}
	return b.String()
}

// Unwrap returns the sentinel and the cause.
func (f *Finding) Unwrap() []error {
	all := []error{f.Err}
	if f.Err == nil {
		all[0] = ErrRefused
	}
	if f.Cause != nil {
		all = append(all, f.Cause)
	}
	return all
}
