package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newTree(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tree [NAME]",
		Short: "Show images, layers, tags and disks, and who shares what",
		Long: `Show every image and base, the sealed layers on it with their tags, and the disks; or
only what an image carries, or what a disk lies on.

What stands in the column of the line above it lies on that line; a branch is indented:

  debian-12          an image
  ├─ vm1             a disk on the image
  └─ @monday         a layer on the image,
     ├─ vm2          a disk on that layer,
     @tuesday        and another layer on it,
     vm3             with a disk on top

A disk's line stands for its head. OWNS is how much a layer has of its own, BLOCKS the same
in blocks; what it does not own comes from what it lies on. Of a disk that is being served
the process says how much; where it does not answer, what is durable in the files is counted
and shown as "≥".

With --json it is an array of nodes, each after the node that it lies on:
  id, parent    parent is the id of the node that it lies on; absent: it is a root
  kind          image, base, zeros, layer or disk
  name, uuid, tag, size (bytes), allocated (bytes of an image on the file system)
  users         number of disks that lie on it
  usage         of a layer or a disk's head: state, size, blocks, owned, allocated (bytes), and
                source: header (exact), process (exact) or map (at least so many)
  serving       pid, control and socket of the process that has the disk open
  error         what is wrong with it`,
		Example:           "  cowblk tree\n  cowblk tree vm1\n  cowblk tree --json | jq -r '.[] | select(.kind == \"layer\") | .tag'",
		Args:              atMost(1),
		ValidArgsFunction: a.complete(1, diskNames, imageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if err := store.CheckName("image or disk", args[0]); err != nil {
					return err
				}
			}
			roots, damage := s.Tree()
			if len(args) == 1 {
				if roots, err = s.Find(roots, args[0]); err != nil {
					return errors.Join(err, damage)
				}
			}
			nodes := store.Flatten(roots)
			askServing(cmd.Context(), nodes)
			damage = errors.Join(damage, nodeErrors(nodes))
			if a.json {
				return errors.Join(a.printJSON(nodes), damage)
			}
			if len(nodes) == 0 && damage == nil {
				a.sayEmpty(s)
				return nil
			}
			t := treeText{rows: [][]string{{"NAME", "KIND", "SIZE", "OWNS", "BLOCKS", "STATE"}}, sizes: map[*store.Node]int{}}
			for _, r := range roots {
				t.count(r)
				t.row(r, "")
				t.branches(r.Children, "")
			}
			return errors.Join(a.printTable(t.rows, columns{shrink: []int{0, 5}, drop: []int{4, 1, 2, 3, 5}}), damage)
		},
	}
}

// sayEmpty says that nothing is in the store, and how to begin.
func (a *app) sayEmpty(s *store.Store) {
	a.say("nothing in store %s yet; to begin: %s", store.PathText(s.Dir()), a.command("import", "FILE", "NAME"))
}

// nodeErrors joins what is wrong with nodes.
func nodeErrors(nodes []*store.Node) error {
	var errs []error
	for _, n := range nodes {
		if n.Err != nil {
			name := n.Name
			if n.Kind == store.KindLayer {
				name = n.UUID.String()
			}
			errs = append(errs, fmt.Errorf("%s %s: %w", n.Kind, name, n.Err))
		}
	}
	return errors.Join(errs...)
}

// treeText is the table of a tree. A chain, however long, stands in one column: what is indented at each node is what
// has less on it, so that the depth of indentation grows with the logarithm of the number of nodes.
type treeText struct {
	rows  [][]string
	sizes map[*store.Node]int // nodes of each subtree
}

func (t *treeText) count(n *store.Node) int {
	size := 1
	for _, c := range n.Children {
		size += t.count(c)
	}
	t.sizes[n] = size
	return size
}

// branches adds chains that hang from one line, indented by one more step.
func (t *treeText) branches(nodes []*store.Node, rest string) {
	for i, n := range nodes {
		if i < len(nodes)-1 {
			t.chain(n, rest+"├─ ", rest+"│  ")
		} else {
			t.chain(n, rest+"└─ ", rest+"   ")
		}
	}
}

// chain adds n and what goes on from it in the same column: its own line begins with first, the others with rest.
func (t *treeText) chain(n *store.Node, first, rest string) {
	for t.row(n, first); len(n.Children) > 0; t.row(n, rest) {
		next := t.continuation(n)
		if next == nil {
			t.branches(n.Children, rest)
			return
		}
		for _, c := range n.Children {
			if c != next {
				t.chain(c, rest+"├─ ", rest+"│  ")
			}
		}
		n = next
	}
}

// continuation is the child that stays in n's column: the only one, or the layer that has most on it. Nil: there are
// disks alone.
func (t *treeText) continuation(n *store.Node) (next *store.Node) {
	if len(n.Children) == 1 {
		return n.Children[0]
	}
	for _, c := range n.Children {
		if c.Kind == store.KindLayer && (next == nil || t.sizes[c] > t.sizes[next]) {
			next = c
		}
	}
	return next
}

func (t *treeText) row(n *store.Node, indent string) {
	name := n.Name
	switch n.Kind {
	case store.KindZeros:
		name = "(no base)"
	case store.KindLayer:
		name = n.UUID.String()[:8]
		if n.Tag != "" {
			name = "@" + n.Tag
		}
	}
	size, owns, blocks := "", "", ""
	if n.Size > 0 {
		size = bytesText(n.Size)
	}
	switch {
	case n.Usage != nil:
		owns, blocks = ownsText(n.Usage), humanize.Comma(int64(n.Usage.Blocks))
	case n.Kind == store.KindImage && n.Err == nil:
		owns = bytesText(n.Allocated)
	}
	t.rows = append(t.rows, []string{indent + name, n.Kind, size, owns, blocks, nodeState(n)})
}

// ownsText is what a layer owns, "≥ 4.0 KiB" if only what is durable is known.
func ownsText(u *store.Usage) string {
	if u.Flushed {
		return "≥ " + bytesText(u.Owned)
	}
	return bytesText(u.Owned)
}

// shownUsers is how many of the disks on a layer or image are named; store.Node has so many of each.
const shownUsers = 4

func nodeState(n *store.Node) string {
	users := strings.Join(n.UserNames[:min(len(n.UserNames), shownUsers)], ", ")
	if more := n.Users - shownUsers; more > 0 {
		users += fmt.Sprintf(" and %s more", humanize.Comma(int64(more)))
	}
	state := "base of " + users
	switch {
	case n.Serving != nil:
		state = servingText(n.Serving)
	case n.Unknown:
		state = "open or not"
	case n.Kind == store.KindDisk:
		state = "stopped"
	case n.Users == 0:
		state = "unused"
	case n.Kind == store.KindLayer && n.Users == 1:
		state = "only " + users
	case n.Kind == store.KindLayer:
		state = "shared by " + users
	}
	return withTrouble(state, n.Err)
}

// servingText is who has a disk open, for a column of a table.
func servingText(v *store.Serving) string {
	short := *v
	if short.Socket == "" {
		return short.String()
	}
	return fmt.Sprintf("served by process %d", short.PID)
}

// withTrouble puts what is wrong before a state. The error itself is told below the table.
func withTrouble(state string, err error) string {
	switch {
	case err == nil:
		return state
	case errors.Is(err, store.ErrRefused):
		return "DAMAGED, " + state
	}
	return "UNREADABLE, " + state
}
