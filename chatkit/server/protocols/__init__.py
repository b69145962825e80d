"""Wire schemas: each turns its protocol into a ChatRequest and events back."""
