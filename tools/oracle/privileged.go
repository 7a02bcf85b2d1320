package main

import "k8s.io/kubernetes/pkg/capabilities"

// Privileged containers are for the cluster's policy to allow: the server has a
// flag for it, which any cluster that runs its own agents sets, and so do we.
func init() { capabilities.Setup(true, 0) }
