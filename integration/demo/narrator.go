package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// narrator prints the steps of the tour, with the time since the start.
type narrator struct {
	out   io.Writer
	start time.Time
	step  int
}

// title prints the title of a step.
func (n *narrator) title(format string, args ...any) {
	n.step++
	fmt.Fprintf(n.out, "\n[%5.1f s] %d. %s\n", time.Since(n.start).Seconds(), n.step,
		fmt.Sprintf(format, args...))
}

// say prints a text within the current step; every line is indented.
func (n *narrator) say(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	fmt.Fprintf(n.out, "    %s\n", strings.ReplaceAll(text, "\n", "\n    "))
}

// command prints a cowblk command line.
func (n *narrator) command(args ...string) { n.say("$ cowblk %s", strings.Join(args, " ")) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func size(bytes int64) string { return humanize.IBytes(uint64(bytes)) }
