// Package report evaluates a run of the comparison: samples by contender and workload, the ratios
// that the targets need, and tables and plots of them. It measures nothing itself.
//
// A ratio is taken within each round, between two contenders that ran shortly after one another.
// The result is the median over the rounds: a machine that slows down for some rounds slows both.
package report
