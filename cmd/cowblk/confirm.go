package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
)

// confirm asks a yes/no question on a terminal and returns nil for yes. Standard input of a script
// is never taken for an answer. When ctx ends, confirm returns its error.
func (a *app) confirm(ctx context.Context, question string) error {
	if !a.terminal(a.in) || !a.terminal(a.err) {
		return unconfirmedf("%s\nno terminal to ask on: --yes confirms", question)
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // outlives confirm after a signal, when the process ends
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil {
			line = "" // end of input, also after "y" without Enter
		}
		answer <- line
	}()
	select {
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		if line == "" {
			fmt.Fprintln(a.err)
		}
		return unconfirmedf("not confirmed; nothing was changed")
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return ctx.Err()
	}
}
