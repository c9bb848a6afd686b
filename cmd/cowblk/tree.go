package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/cow/shell"
	"cowblk/cow/store"
)

func newTree(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tree [NAME]",
		Short: "Show images, layers, tags and disks, and who shares what",
		Long: `Show every image and base, the sealed layers on it with their tags, and the disks; or
only those on one image, or those below one disk.

A line in the same column as the line above lies on that line; a branch is indented:

  debian-12          an image
  ├─ vm1             a disk on the image
  └─ @monday         a layer on the image,
     ├─ vm2          a disk on that layer,
     @tuesday        and another layer on it,
     vm3             with a disk on top

A disk's line stands for its head. OWNS is the amount of data in a layer, BLOCKS the same in
blocks; all other data comes from the layers below. The value for a served disk comes from its
process; if that does not answer, it is the durable part in the files, shown as "≥".

With --json it is an array of nodes, each after the node that it lies on:
  id, parent    parent is the id of the node that it lies on; absent: it is a root
  kind          image, base, zeros, layer or disk
  name, uuid, tag, size (bytes), allocated (bytes of an image on the file system)
  users         number of disks that lie on it
  usage         of a layer or a disk's head: state, size, blocks, owned, allocated (bytes), and
                source: header (exact), process (exact) or map (lower bound)
  serving       pid, control and socket of the process that has the disk open
  error         its problem`,
		Example:           "  cowblk tree\n  cowblk tree vm1\n  cowblk tree --json | jq -r '.[] | select(.kind == \"layer\") | .tag'",
		Args:              maxArgs(1),
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
			client.UpdateUsage(cmd.Context(), s, nodes)
			damage = errors.Join(damage, nodeErrors(nodes))
			if a.json {
				return errors.Join(a.printJSON(nodes), damage)
			}
			if len(nodes) == 0 && damage == nil {
				a.printEmptyStore(s)
				return nil
			}
			t := treeText{rows: [][]string{{"NAME", "KIND", "SIZE", "OWNS", "BLOCKS", "STATE"}},
				sizes: map[*store.Node]int{}}
			for _, r := range roots {
				t.count(r)
				t.row(r, "")
				t.branches(r.Children, "")
			}
			return errors.Join(a.printTable(t.rows, columns{shrink: []int{0, 5},
				drop: []int{4, 1, 2, 3, 5}}), damage)
		},
	}
}

// printEmptyStore says that the store is empty, and how to begin.
func (a *app) printEmptyStore(s *store.Store) {
	a.printf("nothing in store %s yet; to begin: %s", shell.Text(s.Dir()),
		a.command("import", "FILE", "NAME"))
}

// nodeErrors joins the errors of nodes.
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

// treeText is the table of a tree. A chain stays in one column; of several children, the smaller
// subtrees are indented. The depth of indentation so grows with the logarithm of the number of
// nodes.
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

// branches adds the chains of nodes, indented by one more step.
func (t *treeText) branches(nodes []*store.Node, rest string) {
	for i, n := range nodes {
		if i < len(nodes)-1 {
			t.chain(n, rest+"├─ ", rest+"│  ")
		} else {
			t.chain(n, rest+"└─ ", rest+"   ")
		}
	}
}

// chain adds n and its descendants in the same column. The first line begins with first, the others
// with rest.
func (t *treeText) chain(n *store.Node, first, rest string) {
	for t.row(n, first); len(n.Children) > 0; t.row(n, rest) {
		next := t.sameColumnChild(n)
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

// sameColumnChild returns the child that stays in n's column: a single child, or the layer with the
// largest subtree; nil if all children are disks.
func (t *treeText) sameColumnChild(n *store.Node) (next *store.Node) {
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

// ownsText formats what a layer owns: "≥ 4.0 KiB" if only the durable part is known.
func ownsText(u *store.Usage) string {
	if u.Flushed {
		return "≥ " + bytesText(u.Owned)
	}
	return bytesText(u.Owned)
}

// shownUsers bounds the named users of a layer or image. store.Node has up to this many names.
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
	return withProblem(state, n.Err)
}

// servingText describes the holder of a disk for a table cell.
func servingText(v *store.Serving) string {
	short := *v
	if short.Socket == "" {
		return short.String()
	}
	return fmt.Sprintf("served by process %d", short.PID)
}

// withProblem prefixes a state with the kind of its error. The error itself follows the table.
func withProblem(state string, err error) string {
	switch {
	case err == nil:
		return state
	case errors.Is(err, store.ErrRefused):
		return "DAMAGED, " + state
	}
	return "UNREADABLE, " + state
}
