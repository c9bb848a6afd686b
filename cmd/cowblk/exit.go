package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// Exit codes. Scripts depend on them; "cowblk help exit-codes" prints them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitInUse       = 4
	exitRefused     = 5
	exitExists      = 6
	exitTimeout     = 7
	exitUnconfirmed = 9   // 8 belongs to "cowblk check"
	exitInterrupted = 130 // 128 + SIGINT, as in shells; other signals accordingly
)

// exitText describes each code, in the order of the help text.
var exitText = []struct {
	code int
	text string
}{
	{exitOK, "done"},
	{exitFailure, "failed: input or output error, no space, no permission, ..."},
	{exitUsage, "wrong usage: an unknown option, a bad name or size, options that exclude each other"},
	{exitNotFound, "no image, disk or tag has that name"},
	{exitInUse, "in use: a process serves the disk, other disks use the image, or the store is busy"},
	{exitRefused, "refused: something is damaged or differs from its record; it was not changed, and\n       what was done before, to others, is listed"},
	{exitExists, "the name is taken"},
	{exitTimeout, "the time limit has expired (--timeout of cowblk watch and cowblk stop)"},
	{exitUnconfirmed, "not confirmed: the question was answered with no, or a confirming option is missing:\n       --yes without a terminal, --discard-tags; what was done before, to others, is listed"},
	{exitInterrupted, "interrupted by Ctrl-C; incomplete work was undone, and completed work is reported"},
	{141, "the reader of standard output has closed it, as head(1) does"},
	{143, "the same by SIGTERM; 129 by SIGHUP, 131 by SIGQUIT (Ctrl-\\), which makes \"cowblk serve\" print\n       what its threads do and end at once with code 2, as if killed"},
}

// usageError marks an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// unconfirmedError says that a destructive operation was not confirmed.
type unconfirmedError struct{ error }

func (e unconfirmedError) Unwrap() error { return e.error }

func unconfirmedf(format string, args ...any) error {
	return unconfirmedError{fmt.Errorf(format, args...)}
}

// exitCode maps errors to exit codes. It is the only such table.
func exitCode(err error) int {
	var usage usageError
	var check checkStatus
	var unconfirmed unconfirmedError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &unconfirmed):
		return exitUnconfirmed
	case errors.As(err, &check):
		return check.code
	case errors.As(err, &usage), errors.Is(err, store.ErrInvalid):
		return exitUsage
	case errors.Is(err, errWatchTimeout), errors.Is(err, errStopTimeout):
		return exitTimeout
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, store.ErrNotFound):
		return exitNotFound
	case errors.Is(err, store.ErrInUse), errors.Is(err, store.ErrBusy):
		return exitInUse
	case errors.Is(err, store.ErrRefused):
		return exitRefused
	case errors.Is(err, store.ErrExists):
		return exitExists
	}
	return exitFailure
}

// exitCodeOf is exitCode, except that an interruption gets the code of the signal that ended ctx.
func exitCodeOf(ctx context.Context, err error) int {
	code := exitCode(err)
	var by signalError
	if code == exitInterrupted && (errors.As(context.Cause(ctx), &by) || errors.As(err, &by)) {
		code = 128 + int(by.Signal)
	}
	return code
}

// printError prints err: the advice of a refusal and the hint of a usage error on separate lines,
// or one JSON object with --json.
func (a *app) printError(err error, code int) {
	text := a.errorText(err)
	if text == "" {
		return // already reported
	}
	if a.json {
		_ = json.NewEncoder(a.err).Encode(struct {
			Error    string `json:"error"`
			ExitCode int    `json:"exit-code"`
		}{text, code})
		return
	}
	text = strings.ReplaceAll(escapeLineBreaks(text, a.pathsInError(err)), "\n", "\n  ")
	if !strings.HasPrefix(text, "cowblk ") && !strings.HasPrefix(text, "cowblk: ") {
		text = "cowblk: " + text
	}
	fmt.Fprintln(a.err, printable(text))
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(a.err, "  see: cowblk help")
	}
}

// printable escapes characters that a terminal would interpret, except newline and tab.
func printable(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		if r != '\n' && r != '\t' && (r == utf8.RuneError && n == 1 || !unicode.IsPrint(r)) {
			quoted := strconv.Quote(text[i : i+n])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(text[i : i+n])
		}
		i += n
	}
	return b.String()
}

// errorText returns the text of err, which for an interruption includes what it left behind.
func (a *app) errorText(err error) string {
	var partial *interruptedError
	switch {
	case !errors.Is(err, context.Canceled):
		// All time limits bound an answer of a process, of QEMU or of a guest.
		return strings.ReplaceAll(err.Error(), context.DeadlineExceeded.Error(),
			"no answer in time")
	case errors.As(err, &partial):
		return "interrupted: " + partial.text
	}
	text := "interrupted; nothing was changed"
	for _, other := range withoutCanceled(err) {
		text += "\n" + other.Error()
	}
	return text
}

// withoutCanceled returns the errors joined in err that do not come from the interruption.
func withoutCanceled(err error) (others []error) {
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			if errors.Is(part, context.Canceled) {
				others = append(others, withoutCanceled(part)...)
			} else {
				others = append(others, part)
			}
		}
	case interface{ Unwrap() error }:
		return withoutCanceled(e.Unwrap())
	}
	return others
}

// newExitCodes returns a help topic: "cowblk help exit-codes".
func newExitCodes() *cobra.Command {
	var b strings.Builder
	b.WriteString("Exit codes of every cowblk command:\n\n")
	for _, e := range exitText {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.text)
	}
	b.WriteString("\n\"cowblk check\" has codes of its own, as fsck(8) has: 1, 4 and 8; see \"cowblk help check\".\n")
	return &cobra.Command{Use: "exit-codes", Short: "Exit codes of every command",
		Long: strings.TrimSuffix(b.String(), "\n")}
}

// interruptedError is an interruption after part of the work was done.
type interruptedError struct{ text string }

func (e *interruptedError) Error() string { return e.text }
func (e *interruptedError) Unwrap() error { return context.Canceled }

func interruptedf(format string, args ...any) error {
	return &interruptedError{fmt.Sprintf(format, args...)}
}
