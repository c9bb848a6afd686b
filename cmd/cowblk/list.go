package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// listed is one line of "cowblk list --json".
type listed struct {
	Kind string `json:"kind"` // image or disk
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes, as a guest sees it
	Owns int64  `json:"owns"` // bytes: an image's allocation, what a disk's head owns
	// OwnsFrom says where Owns of a disk is from: store.Usage.Source.
	OwnsFrom string         `json:"owns-from,omitempty"`
	Base     string         `json:"base,omitempty"` // of a disk
	Depth    int            `json:"depth"`          // layers of a disk, the head included
	Tags     []string       `json:"tags"`
	Users    []string       `json:"users"` // disks on an image
	Created  time.Time      `json:"created"`
	Serving  *store.Serving `json:"serving,omitempty"`
	Error    string         `json:"error,omitempty"`

	node   *store.Node
	unread bool // a disk whose manifest cannot be read: nothing else is known
}

func newList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images and disks",
		Long: `List images and disks. OWNS is what an image takes on the file system, and how much a
disk's head has of its own: what the guest wrote since the disk was created or promoted.
Of a disk that is being served the process says how much; where it does not answer, what is
durable in the files is counted and shown as "≥" (with --json, owns-from: process, header
or map).

On a terminal that is too narrow names are shortened and columns left out; "cowblk info NAME"
shows all. Anything else that reads the table gets all of it.`,
		Example:           "  cowblk list\n  cowblk list --json | jq -r '.[] | select(.kind == \"disk\").name'",
		Args:              atMost(0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			all, err := listAll(cmd.Context(), s)
			if a.json {
				return errors.Join(a.printJSON(all), err)
			}
			if len(all) == 0 && err == nil {
				a.sayEmpty(s)
				return nil
			}
			rows := [][]string{{"NAME", "KIND", "SIZE", "OWNS", "LAYERS", "ON", "STATE"}}
			for _, l := range all {
				rows = append(rows, l.row())
			}
			return errors.Join(a.printTable(rows, columns{shrink: []int{0, 5, 6}, drop: []int{4, 5, 1, 2, 3, 6}}), err)
		},
	}
}

// listAll reports what can be read, with an error for the rest.
func listAll(ctx context.Context, s *store.Store) ([]listed, error) {
	all := []listed{}
	roots, err := s.Tree()
	nodes := store.Flatten(roots)
	askServing(ctx, nodes)
	heads := map[string]*store.Node{}
	for _, n := range nodes {
		if n.Kind == store.KindDisk {
			heads[n.Name] = n
			err = errors.Join(err, nodeErrors([]*store.Node{n}))
		}
	}
	for _, r := range roots {
		if r.Kind == store.KindImage && r.Err == nil {
			l := listed{Kind: r.Kind, Name: r.Name, Size: r.Size, Owns: r.Allocated, Tags: []string{}, Users: append([]string{}, r.UserNames...), node: r}
			if img, err := s.Image(r.Name); err == nil {
				l.Created = img.Imported
			}
			all = append(all, l)
		}
	}
	names, _ := s.DiskNames() // its error is among Tree's, and so are those of the disks
	for _, name := range names {
		m, derr := s.Disk(name)
		if derr != nil {
			// Also a disk that cannot be read has its name. One that was removed since has no error of Tree's.
			if again, nerr := s.DiskNames(); nerr == nil && slices.Contains(again, name) {
				all = append(all, listed{Kind: store.KindDisk, Name: name, Tags: []string{}, Users: []string{}, Error: derr.Error(), node: &store.Node{Err: derr}, unread: true})
			}
			continue
		}
		n := heads[m.Name]
		if n == nil {
			continue // it was made since
		}
		l := listed{
			Kind: store.KindDisk, Name: m.Name, Size: m.Size, Base: m.Base.String(), Depth: len(m.Layers), Tags: []string{}, Users: []string{},
			Created: m.Created, Serving: n.Serving, Error: n.Error, node: n,
		}
		for _, sealed := range m.Sealed() {
			if sealed.Tag != "" {
				l.Tags = append(l.Tags, sealed.Tag)
			}
		}
		if n.Usage != nil {
			l.Owns, l.OwnsFrom = n.Usage.Owned, n.Usage.Source
		}
		all = append(all, l)
	}
	return all, err
}

func (l *listed) row() []string {
	if l.unread {
		state := "unreadable"
		if errors.Is(l.node.Err, store.ErrRefused) {
			state = "damaged"
		}
		return []string{l.Name, l.Kind, "", "", "", "", state}
	}
	depth, owns, state := "", bytesText(l.Owns), "stopped"
	if l.Kind == store.KindDisk {
		depth, owns = humanize.Comma(int64(l.Depth)), ""
		if l.node.Usage != nil {
			owns = ownsText(l.node.Usage)
		}
	}
	switch {
	case l.Serving != nil:
		state = servingText(l.Serving)
	case l.node.Unknown:
		state = "open or not"
	case l.Kind == store.KindImage && len(l.Users) == 0:
		state = "unused"
	case l.Kind == store.KindImage:
		state = "base of " + countText(int64(len(l.Users)), "disk")
	}
	return []string{l.Name, l.Kind, bytesText(l.Size), owns, depth, l.Base, withTrouble(state, l.node.Err)}
}

// agoText is a time for a person.
func agoText(t time.Time) string {
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05"), humanize.Time(t))
}
