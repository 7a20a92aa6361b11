package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	largestBody       = 16 << 20
	memoryOfBodies    = 64 << 20
	memoryOfResponses = 64 << 20
	mostRequests      = 512
	mostRequestsOfKey = 128
	transferTime      = 10 * time.Second
	transferPerSecond = 64 << 10
)

// Budget is an amount that the requests in progress share. One key has half of it at most.
type Budget struct {
	mutex  sync.Mutex
	total  int
	ofKey  int
	used   int
	usedBy map[string]int
}

func newBudget(total, ofKey int) *Budget {
	return &Budget{total: total, ofKey: ofKey, usedBy: map[string]int{}}
}

// Lease is what one request has of a budget.
type Lease struct {
	budget *Budget
	key    string
	amount int
}

func (budget *Budget) lease(key string) *Lease { return &Lease{budget: budget, key: key} }

func (lease *Lease) take(amount int) bool {
	budget := lease.budget
	budget.mutex.Lock()
	defer budget.mutex.Unlock()
	if budget.used+amount > budget.total || budget.usedBy[lease.key]+amount > budget.ofKey {
		return false
	}
	budget.used += amount
	budget.usedBy[lease.key] += amount
	lease.amount += amount
	return true
}

func (lease *Lease) release() {
	budget := lease.budget
	budget.mutex.Lock()
	defer budget.mutex.Unlock()
	budget.used -= lease.amount
	if budget.usedBy[lease.key] -= lease.amount; budget.usedBy[lease.key] == 0 {
		delete(budget.usedBy, lease.key)
	}
	lease.amount = 0
}

// transferLimit is the time for a transfer of some bytes: 10 s, and 1 s for each 64 KiB.
func transferLimit(bytes int) time.Duration {
	return transferTime + time.Duration(bytes)*time.Second/transferPerSecond
}

// leasedReader reads a body while its time and its memory last.
type leasedReader struct {
	source     io.Reader
	controller *http.ResponseController
	lease      *Lease
	began      time.Time
	count      int
}

var errNoMemory = errors.New("the bodies in progress have no room for another one")

func (reader *leasedReader) Read(buffer []byte) (int, error) {
	if reader.controller != nil {
		if err := reader.controller.SetReadDeadline(reader.began.Add(transferLimit(reader.count))); err != nil {
			return 0, err
		}
	}
	count, err := reader.source.Read(buffer)
	reader.count += count
	if !reader.lease.take(count) {
		return count, errNoMemory
	}
	return count, err
}

// readBody returns the body, expanded, and a function that gives its memory back.
func (service *Service) readBody(call *Call) (body []byte, release func(), err error) {
	if mediaType(call.request) != "application/json" {
		return nil, nil, &Problem{status: http.StatusUnsupportedMediaType, detail: "the Content-Type must be application/json"}
	}
	if call.request.ContentLength > largestBody {
		return nil, nil, &Problem{status: http.StatusRequestEntityTooLarge, detail: "a body has at most 16 MiB"}
	}
	lease := service.bodies.lease(call.key.id)
	sent := &leasedReader{
		source: call.request.Body, controller: http.NewResponseController(call.writer), lease: lease, began: time.Now(),
	}
	defer func() { _ = sent.controller.SetReadDeadline(time.Time{}) }() // the connection may wait for its next request
	switch strings.ToLower(call.request.Header.Get("Content-Encoding")) {
	case "", "identity":
		body, err = readAtMost(sent)
	case "gzip":
		body, err = expand(io.LimitReader(sent, largestBody+1), lease)
	default:
		err = &Problem{status: http.StatusUnsupportedMediaType, detail: "the Content-Encoding must be gzip, or absent"}
	}
	if err != nil {
		lease.release()
		return nil, nil, bodyProblem(err)
	}
	return body, lease.release, nil
}

func expand(sent io.Reader, lease *Lease) ([]byte, error) {
	expanded, err := gzip.NewReader(sent)
	if err != nil {
		return nil, err
	}
	return readAtMost(&leasedReader{source: expanded, lease: lease})
}

func readAtMost(source io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(source, largestBody+1))
	if err == nil && len(body) > largestBody {
		err = &Problem{status: http.StatusRequestEntityTooLarge, detail: "a body has at most 16 MiB"}
	}
	return body, err
}

func bodyProblem(err error) error {
	var problem *Problem
	switch {
	case errors.As(err, &problem):
		return problem
	case errors.Is(err, errNoMemory):
		return busy(http.StatusTooManyRequests, err.Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return busy(http.StatusRequestTimeout, "the body arrived too slowly")
	}
	return invalid(fmt.Sprintf("the body cannot be read: %s", err))
}
