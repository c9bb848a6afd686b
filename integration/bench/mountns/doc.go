// Package mountns gives a benchmark a mount namespace of its own.
package mountns
