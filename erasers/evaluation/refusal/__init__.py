"""What is never drawn: prompts that combine sexual content and minors."""
