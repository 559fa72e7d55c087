"""What was meant, and what to answer: messages become replies, edits and pages. No torch."""
